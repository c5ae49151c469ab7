"""One budget over all layers: attempts in process, deliveries, crashes and takeovers of one message."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import stop_after_attempt, wait_fixed

from unlost.core.headers import Failure
from unlost.core.ids import Generation, MessageId
from unlost.core.retry import RetryPolicy, TryAgain
from unlost.core.settlement import (
    Delivery,
    Limits,
    Resend,
    Row,
    Run,
    State,
    admit,
    crashed,
    decided_dead,
    decided_waiting,
    released,
)

MESSAGE = MessageId("t", "1")
FAILURE = Failure(reason="test")

#: How a delivery goes on: after so many further attempts in process, the body fails (and the publish of what
#: was decided is done, or lost with the worker), or the process crashes, is lost, or is stopped.
STEPS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["fail", "fail-unsent", "crash", "lost", "stop"])),
    max_size=40,
)


@dataclass
class Game:
    """One message, its row, its deliveries under way, and what an observer counts."""

    policy: RetryPolicy
    counts_in_process: bool = True
    row: Row | None = None
    deliveries: list[Generation] = field(default_factory=lambda: [Generation(0, 1)])
    runs: int = 0
    attempts: int = 0
    #: Attempts in deliveries that ended without a word.
    unaccounted: int = 0
    excused: int = 0

    def play(self, number: int, in_process: int, how: str) -> None:
        """Deliver the next copy, and have it end so."""
        generation = self.deliveries.pop(0)
        admission = admit(
            self.row,
            Delivery(message=MESSAGE, generation=generation, holder=f"h{number}"),
            now=float(number),
            now_ms=number,
            lease=timedelta(seconds=1),
            holder_gone=True,
            limits=Limits(max_crashes=3, max_lost=4),
            decision=f"d{number}",
        )
        if isinstance(admission, Resend):
            self._resend(admission)
        elif isinstance(admission, Run):
            self.row = admission.row
            self._run(generation, in_process, how)

    def _resend(self, admission: Resend) -> None:
        self.row = admission.row._replace(sent=True)
        if self.row.state is State.WAITING:
            self.deliveries.append(self.row.generation)

    def _run(self, generation: Generation, in_process: int, how: str) -> None:
        row = self.row
        assert row is not None
        self.runs += 1
        made = 1
        while made <= in_process and isinstance(self._verdict(row, made), TryAgain):
            made += 1
        self.attempts += made
        if how.startswith("fail"):
            self._fail(row, generation, made, sent=how == "fail")
            return
        self.unaccounted += made
        self.excused += 1
        self.deliveries.append(generation)
        # A row that is lost stays leased, and its next delivery takes it over.
        self.row = {"crash": crashed, "stop": released}.get(how, lambda same: same)(row)

    def _verdict(self, row: Row, made: int) -> object:
        number = row.generation.attempt + made - 1
        return self.policy.decide(OSError(), attempt=number, since_start=timedelta(0))

    def _fail(self, row: Row, generation: Generation, made: int, *, sent: bool) -> None:
        counted = made - 1 if self.counts_in_process else 0
        verdict = self._verdict(row, 1 + counted)
        ended = row._replace(generation=row.generation._replace(attempt=row.generation.attempt + counted))
        if isinstance(verdict, TryAgain):
            self.row = decided_waiting(ended, decision="d", due_ms=0, failure=FAILURE)
            # What was not published comes again as the delivery that failed.
            self.deliveries.append(self.row.generation if sent else generation)
        else:
            self.row = decided_dead(ended, decision="d", failure=FAILURE)
        self.row = self.row._replace(sent=sent)


def play(budget: int, steps: list[tuple[int, str]], *, counts_in_process: bool = True) -> Game:
    """Play a message until nothing is under way any more, or the steps are over."""
    policy = RetryPolicy(wait=wait_fixed(0), stop=stop_after_attempt(budget))
    game = Game(policy, counts_in_process)
    for number, (in_process, how) in enumerate(steps):
        if not game.deliveries:
            break
        game.play(number, in_process, how)
    return game


@given(st.integers(1, 6), STEPS)
def test_bodies_run_within_the_budget_and_the_recorded_crashes(
    budget: int, steps: list[tuple[int, str]]
) -> None:
    """Runs: the budget, one for each crash, takeover and stop. Attempts: the same, with what those lost."""
    game = play(budget, steps)
    assert game.runs <= budget + game.excused
    assert game.attempts <= budget + game.unaccounted


@given(st.integers(1, 6), st.lists(st.integers(0, 3), min_size=30, max_size=30))
def test_without_crashes_the_attempts_are_exactly_the_budget(budget: int, in_process: list[int]) -> None:
    """However they are spread over deliveries and processes, and whether each publish got through or not."""
    steps = [(more, "fail" if more % 2 else "fail-unsent") for more in in_process]
    game = play(budget, steps)
    assert game.attempts == budget
    assert game.row is not None
    assert (game.row.state, game.row.generation.attempt) == (State.DEAD, budget)


def test_uncounted_attempts_in_process_would_be_found() -> None:
    """The control: a ledger that does not learn of them grants too many."""
    with pytest.raises(AssertionError):
        assert play(3, [(1, "fail")] * 9, counts_in_process=False).attempts <= 3
