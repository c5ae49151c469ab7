"""The table in the docstring of :mod:`unlost.core.settlement` is what :func:`admit` does, row by row."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import product

import pytest

from unlost.core import settlement
from unlost.core.headers import Failure
from unlost.core.ids import Generation, MessageId
from unlost.core.settlement import (
    Admission,
    AlreadyDone,
    Delivery,
    Held,
    Limits,
    Resend,
    Row,
    Run,
    State,
    Superseded,
    admit,
    decided_dead,
    decided_waiting,
)

NOW = 1000.0
LIMITS = Limits(max_crashes=3, max_lost=5)
GENERATIONS = [Generation(redrives, attempt) for redrives, attempt in product((0, 1, 2), (1, 2, 3))]

#: What the third column's beginnings mean.
MEANS: dict[str, type] = {
    "run it": Run,
    "take over": Run,
    "repeat only the dispatch": AlreadyDone,
    "superseded": Superseded,
    "held": Held,
    "repeat the publish": Resend,
}


@dataclass(frozen=True)
class Situation:
    """A row of the ledger, what is known of its holder, and the delivery that meets it."""

    row: Row | None
    generation: Generation
    by_holder: bool = False
    holder_gone: bool = False

    def admission(self) -> Admission:
        """Return what the delivery is admitted to."""
        return admit(
            self.row,
            Delivery(
                message=MessageId("shop.charge", "m"),
                generation=self.generation,
                holder="old" if self.by_holder else "new",
            ),
            now=NOW,
            now_ms=0,
            lease=timedelta(seconds=15),
            holder_gone=self.holder_gone,
            limits=LIMITS,
            decision="here",
        )

    def entry(self) -> tuple[str, str]:
        """Return the first two columns of the table's row that is about this."""
        row = self.row
        if row is None:
            return "absent", "any"
        if row.state in (State.DONE, State.CANCELLED):
            return str(row.state), "any"
        if row.state is State.LEASED:
            if self.by_holder and row.holder is not None:
                return "leased, by this delivery", "any"
            alive = row.holder is not None and row.expires > NOW and not self.holder_gone
            return ("leased, holder alive" if alive else "leased, expired or dead"), "any"
        sent = "sent" if row.sent else "not sent"
        if row.state is State.WAITING:
            older = self.generation < row.generation
            return "waiting(G)", f"older than G, {sent}" if older else "G or later"
        newer = self.generation.redrives > row.generation.redrives
        return "dead(G)", "newer redrive" if newer else f"same redrive, {sent}"


def rows() -> Iterator[Row | None]:
    """Yield the ledger's rows of every state, generation and count that matters."""
    yield None
    for generation, crashes, lost in product(GENERATIONS, (0, 2, 3), (0, 4, 5)):
        leased = Row(
            state=State.LEASED,
            generation=generation,
            token=7,
            holder="old",
            expires=NOW + 5,
            crashes=crashes,
            lost=lost,
        )
        yield leased
        yield leased._replace(expires=NOW)
        yield leased._replace(holder=None, expires=0.0)
        yield leased._replace(state=State.DONE, holder=None)
        yield leased._replace(state=State.CANCELLED, holder=None)
        waiting = decided_waiting(leased, decision="d", due_ms=0, failure=Failure(reason="failed"))
        dead = decided_dead(leased, decision="d", failure=Failure(reason="failed"))
        for decided in (waiting, dead):
            yield decided
            yield decided._replace(sent=True)


def situations() -> Iterator[Situation]:
    """Yield every delivery to every row."""
    for row, generation, by_holder, gone in product(rows(), GENERATIONS, (False, True), (False, True)):
        yield Situation(row, generation, by_holder, gone)


def by_entry() -> dict[tuple[str, str], list[Situation]]:
    """Return all situations by the table's row that is about them."""
    found = defaultdict(list)
    for situation in situations():
        found[situation.entry()].append(situation)
    return found


def table() -> dict[tuple[str, str], str]:
    """Return the docstring's table: what is done, by row and delivery."""
    lines = (settlement.__doc__ or "").splitlines()
    rules = [at for at, line in enumerate(lines) if line.startswith("===")]
    starts = [match.start() for match in re.finditer("=+", lines[rules[0]])]
    entries: list[list[str]] = []
    for line in lines[rules[1] + 1 : rules[2]]:
        cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        if cells[0]:
            entries.append(cells)
        else:
            entries[-1] = [f"{above} {cell}".strip() for above, cell in zip(entries[-1], cells, strict=True)]
    return {(row, delivery): does for row, delivery, does in entries}


TABLE = table()
SITUATIONS = by_entry()


def test_the_table_covers_every_delivery_to_every_row() -> None:
    """Each situation has its row in the table, and each row of the table has situations."""
    assert set(TABLE) == set(SITUATIONS)
    assert sum(len(each) for each in SITUATIONS.values()) > 20_000


@pytest.mark.parametrize("entry", TABLE, ids=" & ".join)
def test_a_row_of_the_table_is_what_is_done(entry: tuple[str, str]) -> None:
    """Every delivery that a row is about is admitted as the row says; poison aside, which it names."""
    does = TABLE[entry]
    [expected] = [kind for beginning, kind in MEANS.items() if does.startswith(beginning)]
    for situation in SITUATIONS[entry]:
        admission = situation.admission()
        if is_poison(situation):
            assert "too many crashes or takeovers, and no newer redrive: decide dead" in does
            assert isinstance(admission, Resend)
            assert admission.write
            assert admission.row.state is State.DEAD
        else:
            assert isinstance(admission, expected), situation
        if isinstance(admission, Run) and situation.row is not None and not situation.by_holder:
            assert admission.row.generation == max(situation.row.generation, situation.generation)
        if isinstance(admission, Resend) and not is_poison(situation):
            assert admission == Resend(situation.row, write=False)  # type: ignore[arg-type]


def is_poison(situation: Situation) -> bool:
    """Whether the table's exception holds: a lease that ended, by a process too many of which have died."""
    row = situation.row
    if row is None or situation.entry()[0] != "leased, expired or dead":
        return False
    taken_over = row.holder is not None
    spent = row.crashes >= LIMITS.max_crashes or row.lost + taken_over >= LIMITS.max_lost
    return spent and situation.generation.redrives <= row.generation.redrives
