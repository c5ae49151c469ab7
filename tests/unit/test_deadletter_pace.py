"""How far a redrive goes before it stops by itself: the canary, and one window more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.letters import as_letter, numbered
from unlost.core.clock import from_epoch_ms
from unlost.core.message import Outgoing
from unlost.core.outcome import Outcome
from unlost.deadletter.disposition import Redrive, decide
from unlost.deadletter.journal import Journal
from unlost.deadletter.letter import DeadLetter
from unlost.deadletter.move import PASSED, Act, Move, Report
from unlost.deadletter.pace import Pace
from unlost.errors import QueueMissing, Refused

NOW = from_epoch_ms(1_790_000_000_000)
MANY = 500


@dataclass(eq=False)
class Held:
    """A letter of this world."""

    letter: DeadLetter


@dataclass
class World:
    """A queue of letters, and workers by whom some of what is sent back dies again before the next look."""

    #: Of the letters that are sent, in their order: whether they die again.
    dies: Any
    sent_back: int = 0
    seen: int = 0
    waits: list[float] = field(default_factory=list)

    def letters(self, most: int | None = None) -> Iterator[Held]:  # noqa: ARG002 - as a hold's
        """Hand out letters."""
        for outgoing in numbered(MANY):
            yield Held(as_letter(outgoing))

    def keep(self, held: Held) -> None:
        """Leave one."""

    def ack(self, batch: Sequence[Held]) -> None:
        """Remove some."""

    def prepare(self, letter: DeadLetter) -> None:
        """Begin to watch."""

    def sent(self, letter: DeadLetter) -> None:  # noqa: ARG002 - as of fates
        """Count what was sent."""
        self.sent_back += 1

    def came_back(self) -> int:
        """Return how many have died since the last call."""
        back = sum(1 for number in range(self.seen, self.sent_back) if self.dies(number))
        self.seen = self.sent_back
        return back

    def canary(self) -> str:
        """Judge by the limit of these tests: none may die."""
        return f"{back} died again" if (back := self.came_back()) else PASSED


@dataclass
class Stored:
    """A confirm."""

    outcome: Outcome = Outcome.OK
    error: Exception | None = None


def publish(messages: Iterable[Outgoing]) -> Iterator[Stored]:
    """Confirm every message."""
    for _ in messages:
        yield Stored()


def redrive(world: World, folder: Path, pace: Pace, act: Act = publish) -> Report:
    """Send letters back until all are sent or it stops."""
    with Journal(folder / "journal", {"action": "redrive"}) as journal:
        return Move(
            world,
            lambda letter: decide(letter, Redrive(), journal, None, NOW),
            act,
            journal,
            pace=pace,
            fates=world,
            sleep=world.waits.append,
            clock=lambda: 0.0,
        )()


def test_a_broken_group_stops_at_the_canary(tmp_path: Path) -> None:
    """When the canary dies again, nothing but the canary was sent."""
    report = redrive(World(dies=lambda _: True), tmp_path, Pace(canary=10, window=50))
    assert (report.sent, report.stopped) == (10, "canary of 10: 10 died again")


@pytest.mark.parametrize("rate", [None, 50.0, 20.0])
def test_a_group_that_breaks_behind_the_canary_stops_within_one_window(
    tmp_path: Path, rate: float | None
) -> None:
    """When all that follows the canary dies again, no more than one window of it was sent."""
    world = World(dies=lambda number: number >= 10)
    report = redrive(world, tmp_path, Pace(canary=10, window=50, rate=rate))
    assert report.sent <= 10 + 50
    assert report.stopped is not None


def test_what_is_confirmed_when_the_queue_vanishes_is_in_the_journal(tmp_path: Path) -> None:
    """An error while letters are read leaves every confirmed one recorded, so that none is sent again."""

    class Vanishing(World):
        """A world whose queue is deleted."""

        def letters(self, most: int | None = None) -> Iterator[Held]:  # noqa: ARG002 - as a hold's
            """Hand out some letters, and find the queue gone."""
            for outgoing in numbered(30):
                yield Held(as_letter(outgoing))
            raise QueueMissing("it was deleted")

    with pytest.raises(QueueMissing):
        redrive(Vanishing(dies=lambda _: False), tmp_path, Pace(canary=0))
    with Journal(tmp_path / "journal", {"action": "redrive"}) as journal:
        assert journal.sent == 30


def test_equal_errors_are_one_kind_of_failure(tmp_path: Path) -> None:
    """Letters that fail for one reason are counted together, whatever their messages are called."""

    def refuse(messages: Iterable[Outgoing]) -> Iterator[Stored]:
        for message in messages:
            yield Stored(Outcome.FAILED, Refused(f"{message.describe()}: the queue is full"))

    report = redrive(World(dies=lambda _: False), tmp_path, Pace(canary=0, window=600), act=refuse)
    assert report.failed == {"to 'shop.work': the queue is full": MANY}


def test_a_share_below_the_limit_stops_nothing(tmp_path: Path) -> None:
    """One letter of twenty may die again when one of ten may."""
    report = redrive(World(dies=lambda number: number % 20 == 19), tmp_path, Pace(canary=10, window=50))
    assert (report.sent, report.stopped, report.came_back) == (MANY, None, MANY // 20)


def test_the_rate_is_kept_between_bursts(tmp_path: Path) -> None:
    """At 100 letters a second, 490 letters behind the canary wait for at least four seconds in all."""
    world = World(dies=lambda _: False)
    redrive(world, tmp_path, Pace(canary=10, window=200, rate=100.0))
    assert max(world.waits) >= 4
