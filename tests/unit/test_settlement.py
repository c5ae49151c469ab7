"""The ledger's transitions, row by row of the table in :mod:`unlost.core.settlement`."""

from __future__ import annotations

from datetime import timedelta

import pytest

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
    crashed,
    decided_dead,
    decided_waiting,
    released,
    spread_of,
)

NOW = 1000.0
NOW_MS = 1_700_000_000_000
FIRST, SECOND, THIRD = Generation(0, 1), Generation(0, 2), Generation(0, 3)
REDRIVEN = Generation(1, 1)
FAILURE = Failure(reason="budget-spent", exception="boom")
LIMITS = Limits(max_crashes=3, max_lost=20)


def arrive(row: Row | None, generation: Generation = FIRST, *, holder_gone: bool = False) -> Admission:
    """Return what a delivery is admitted to at ``NOW``."""
    return admit(
        row,
        Delivery(message=MessageId("shop.charge", "m"), generation=generation, holder="new"),
        now=NOW,
        now_ms=NOW_MS,
        lease=timedelta(seconds=15),
        holder_gone=holder_gone,
        limits=LIMITS,
        decision="here",
    )


def run(admission: Admission) -> Row:
    """Return the granted row."""
    assert isinstance(admission, Run)
    return admission.row


def leased(generation: Generation = FIRST, **changes: object) -> Row:
    """Return a row whose holder is alive, with one crash and two takeovers behind it."""
    row = Row(
        state=State.LEASED,
        generation=generation,
        token=7,
        holder="old",
        expires=NOW + 5,
        crashes=1,
        lost=2,
        started_ms=42,
    )
    return row._replace(**changes)  # type: ignore[arg-type]


def waiting(*, sent: bool) -> Row:
    """Return the row after the first attempt failed: waiting for the second."""
    row = decided_waiting(leased(), decision="retry", due_ms=NOW_MS + 1, failure=FAILURE)
    return row._replace(sent=sent)


def dead(*, sent: bool, generation: Generation = SECOND) -> Row:
    """Return the row after the last attempt failed."""
    return decided_dead(leased(generation), decision="letter", failure=FAILURE)._replace(sent=sent)


DONE = Row(state=State.DONE, generation=SECOND, token=9, result='"paid"')
CANCELLED = Row(state=State.CANCELLED, generation=SECOND, token=9)


# --- the table


def test_absent_row_runs() -> None:
    """A message nobody has seen runs as what it claims to be, and its clock starts."""
    row = run(arrive(None, SECOND))

    assert row == Row(
        state=State.LEASED, generation=SECOND, token=1, holder="new", expires=NOW + 15, started_ms=NOW_MS
    )


@pytest.mark.parametrize("generation", [FIRST, SECOND, THIRD, REDRIVEN])
def test_done_is_final(generation: Generation) -> None:
    """No delivery, not even an operator's redrive, runs a done message again."""
    assert arrive(DONE, generation, holder_gone=True) == AlreadyDone(DONE)


@pytest.mark.parametrize("generation", [FIRST, SECOND, THIRD, REDRIVEN])
def test_cancelled_is_final(generation: Generation) -> None:
    """A cancelled message is acked whatever arrives."""
    assert arrive(CANCELLED, generation) == Superseded(CANCELLED)


@pytest.mark.parametrize("generation", [FIRST, SECOND, REDRIVEN])
def test_live_lease_holds(generation: Generation) -> None:
    """While a holder lives every copy waits for the rest of its lease."""
    assert arrive(leased(), generation) == Held(5.0)


def test_lease_that_ends_now_is_expired() -> None:
    """A lease holds until its last moment and not beyond it."""
    assert isinstance(arrive(leased(expires=NOW + 0.001)), Held)
    assert isinstance(arrive(leased(expires=NOW)), Run)


@pytest.mark.parametrize(
    ("row", "gone"), [(leased(expires=NOW - 1), False), (leased(), True)], ids=["expired", "holder dead"]
)
def test_takeover_is_counted_as_lost(row: Row, gone: bool) -> None:
    """A lease that its holder did not end is taken over, and counted apart from crashes."""
    taken = run(arrive(row, holder_gone=gone))

    assert (taken.holder, taken.lost, taken.crashes) == ("new", 3, 1)
    assert taken.token == 8
    assert taken.started_ms == 42


@pytest.mark.parametrize("end", [crashed, released])
def test_an_ended_lease_is_no_takeover(end: object) -> None:
    """A lease that was ended in the ledger is granted again without being counted as lost."""
    row = crashed(leased()) if end is crashed else released(leased())

    assert run(arrive(row)).lost == 2


@pytest.mark.parametrize(
    ("row", "delivery", "later"),
    [
        (FIRST, SECOND, SECOND),
        (SECOND, FIRST, SECOND),
        (SECOND, SECOND, SECOND),
        (REDRIVEN, SECOND, REDRIVEN),
    ],
)
def test_takeover_runs_as_the_later(row: Generation, delivery: Generation, later: Generation) -> None:
    """An old copy that takes over goes on where the message stands."""
    assert run(arrive(leased(row), delivery, holder_gone=True)).generation == later


def test_older_than_a_sent_retry_is_superseded() -> None:
    """The retry is with the broker, so its predecessor's copy is acked."""
    assert arrive(waiting(sent=True), FIRST) == Superseded(waiting(sent=True))


def test_older_than_an_unsent_retry_repeats_the_publish() -> None:
    """A retry not known to be sent is published again, without a write and without the body."""
    assert arrive(waiting(sent=False), FIRST) == Resend(waiting(sent=False), write=False)


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("generation", [SECOND, THIRD])
def test_the_retry_itself_runs(generation: Generation, sent: bool) -> None:
    """What a row waits for runs, with the counts of the redrive so far and no decision left to mark."""
    row = run(arrive(waiting(sent=sent), generation))

    assert row.generation == generation
    assert (row.crashes, row.lost, row.started_ms) == (1, 2, 42)
    assert (row.decision, row.sent, row.failure, row.due_ms) == (None, False, None, None)


@pytest.mark.parametrize("generation", [FIRST, SECOND, THIRD])
def test_dead_and_sent_supersedes_its_redrive(generation: Generation) -> None:
    """Once the letter is with the broker every copy of the same redrive is acked."""
    assert arrive(dead(sent=True), generation) == Superseded(dead(sent=True))


@pytest.mark.parametrize("generation", [FIRST, SECOND, THIRD])
def test_dead_and_unsent_repeats_the_letter(generation: Generation) -> None:
    """A letter not known to be sent is published again, never the body run."""
    assert arrive(dead(sent=False), generation) == Resend(dead(sent=False), write=False)


@pytest.mark.parametrize("sent", [True, False])
def test_redrive_starts_afresh(sent: bool) -> None:
    """An operator's redrive runs with crashes, takeovers and clock reset."""
    row = run(arrive(dead(sent=sent), REDRIVEN))

    assert row.generation == REDRIVEN
    assert (row.crashes, row.lost, row.started_ms) == (0, 0, NOW_MS)


def test_a_letter_sent_back_twice_runs_once() -> None:
    """A second copy of a redrive that died again is acked; its own letter is there."""
    row = dead(sent=True, generation=REDRIVEN)

    assert arrive(row, REDRIVEN) == Superseded(row)
    assert arrive(row, SECOND) == Superseded(row)


def test_redrive_overtakes_a_waiting_retry() -> None:
    """A redrive while a retry waits runs, and makes the retry the older one."""
    row = run(arrive(waiting(sent=True), REDRIVEN))

    assert row.generation == REDRIVEN
    retried = decided_waiting(row, decision="d", due_ms=0, failure=FAILURE)
    assert isinstance(arrive(retried._replace(sent=True), SECOND), Superseded)


# --- poison


@pytest.mark.parametrize(("crashes", "lost"), [(3, 0), (0, 20)])
def test_poison_is_decided_dead(crashes: int, lost: int) -> None:
    """A message that took down enough processes is decided dead instead of run."""
    row = leased(holder=None, crashes=crashes, lost=lost)

    admission = arrive(row, SECOND)

    assert isinstance(admission, Resend)
    assert admission.write
    poisoned = admission.row
    assert (poisoned.state, poisoned.generation, poisoned.decision) == (State.DEAD, SECOND, "here")
    assert poisoned.token > row.token
    assert not poisoned.sent
    assert poisoned.failure is not None
    assert poisoned.failure.reason == "poison"


@pytest.mark.parametrize(("crashes", "lost"), [(2, 0), (0, 19)])
def test_one_less_than_poison_runs(crashes: int, lost: int) -> None:
    """The limit itself is the first that is not run."""
    assert isinstance(arrive(leased(holder=None, crashes=crashes, lost=lost)), Run)


def test_only_a_takeover_is_to_be_spread() -> None:
    """An expired lease is another's; an ended one, a retry and a first delivery are nobody's."""
    assert arrive(leased(), holder_gone=True) == Run(
        run(arrive(leased(), holder_gone=True)), is_takeover=True
    )
    for row in (None, leased(holder=None), waiting(sent=True)):
        assert arrive(row, SECOND) == Run(run(arrive(row, SECOND)), is_takeover=False)


def test_takeovers_spread_ever_wider_and_at_most_over_a_minute() -> None:
    """Each loss doubles the time, to a minute."""
    spreads = [spread_of(leased(lost=lost)) for lost in (1, 2, 5, 6, 20)]
    assert spreads == [timedelta(seconds=seconds) for seconds in (2, 4, 32, 60, 60)]


def test_the_last_takeover_poisons() -> None:
    """The takeover that reaches the limit is counted before it is granted."""
    admission = arrive(leased(lost=19), holder_gone=True)

    assert isinstance(admission, Resend)
    assert admission.row.lost == 20
    assert admission.row.holder is None


def test_a_live_lease_is_not_poisoned() -> None:
    """An attempt that runs may still succeed, however many crashed before it."""
    assert isinstance(arrive(leased(crashes=3, lost=20)), Held)


def test_crashes_are_reset_by_a_newer_redrive() -> None:
    """A redrive that finds a lease with too many crashes is not charged for them."""
    row = run(arrive(leased(holder=None, crashes=3, lost=20), REDRIVEN))

    assert (row.generation, row.crashes, row.lost) == (REDRIVEN, 0, 0)


def test_an_older_redrive_does_not_reset_crashes() -> None:
    """A left-over copy of an earlier redrive cannot wash a poisonous message clean."""
    assert isinstance(arrive(leased(REDRIVEN, holder=None, crashes=3), SECOND), Resend)


# --- the end of an attempt


def test_a_retry_is_the_next_attempt() -> None:
    """A retryable failure ends the lease and names the next attempt, its time and its cause."""
    row = decided_waiting(leased(SECOND), decision="d", due_ms=5, failure=FAILURE)

    assert (row.state, row.generation, row.due_ms) == (State.WAITING, THIRD, 5)
    assert (row.holder, row.expires, row.decision, row.sent) == (None, 0.0, "d", False)
    assert (row.failure, row.crashes, row.lost, row.started_ms) == (FAILURE, 1, 2, 42)


def test_a_letter_keeps_its_attempt() -> None:
    """A permanent failure ends the lease at the attempt that failed."""
    row = decided_dead(leased(SECOND), decision="d", failure=FAILURE)

    assert (row.state, row.generation, row.decision) == (State.DEAD, SECOND, "d")
    assert (row.holder, row.expires, row.sent, row.failure) == (None, 0.0, False, FAILURE)


def test_a_crash_is_counted_and_a_release_is_not() -> None:
    """Both end the lease at once; only the crash is charged."""
    assert crashed(leased()) == leased(holder=None, expires=0.0, crashes=2)
    assert released(leased()) == leased(holder=None, expires=0.0)


def test_the_same_delivery_is_granted_again() -> None:
    """A delivery that acquires again, because the answer was lost, keeps its lease as it is."""
    row = run(arrive(None))

    assert run(arrive(row)) == row


def test_the_token_grows() -> None:
    """Every grant and every decision makes the tokens of earlier holders stale."""
    tokens = [run(arrive(None)).token]
    row = run(arrive(None))
    for _ in range(2):
        row = decided_waiting(row, decision="d", due_ms=0, failure=FAILURE)
        tokens.append(row.token)
        row = run(arrive(row, row.generation))
        tokens.append(row.token)
        row = run(arrive(row._replace(holder="another"), holder_gone=True))
        tokens.append(row.token)
    row = decided_dead(row, decision="d", failure=FAILURE)
    tokens += [row.token, run(arrive(row, REDRIVEN)).token]

    assert tokens == sorted(set(tokens))
