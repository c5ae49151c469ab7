"""What a ledger promises of leases and decisions, asked of the SQL store on a real file."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from tests.support.ledgers import (
    FIRST,
    LEASE,
    MESSAGE,
    BootClock,
    acquire,
    granted,
    read,
)
from tests.support.processes import PATIENCE
from unlost.core.headers import Failure
from unlost.core.ids import Generation, MessageId
from unlost.core.settlement import AlreadyDone, Delivery, Held, Limits, Resend, Run, State, Superseded
from unlost.errors import LeaseLost
from unlost.idempotency.sql import SqlStore

FAILURE = Failure("retry", "shop.Timeout", "slow \ud800 ü", "Traceback", "host:1", 7)
REDRIVEN = Generation(1, 1)


# --- acquire


def test_a_new_message_is_leased(store: SqlStore, clock: BootClock) -> None:
    """The first delivery is granted a lease, and the row says by whom and until when."""
    row = granted(store, holder="me")

    assert read(store) == row
    assert (row.state, row.generation, row.holder) == (State.LEASED, FIRST, "me")
    assert row.expires == clock.seconds + LEASE.total_seconds()


def test_a_message_nobody_acquired_has_no_row(store: SqlStore) -> None:
    """Absence is reported as absence."""
    assert store.read(MESSAGE) is None


def test_a_second_acquire_is_held(store: SqlStore, clock: BootClock) -> None:
    """While the lease lives a copy is held for its rest, and nothing is written."""
    row = granted(store)
    clock.seconds += 5

    assert acquire(store) == Held(10.0)
    assert read(store) == row


def test_an_expired_lease_is_taken_over(store: SqlStore, clock: BootClock) -> None:
    """Expiry permits a takeover even from a living holder, and is counted."""
    first = granted(store)
    clock.seconds += 15

    second = granted(store)

    assert second.token > first.token
    assert second.lost == 1


def test_the_lease_of_an_earlier_boot_is_taken_over(store: SqlStore, clock: BootClock) -> None:
    """After a reboot the clock begins anew, so an old lease would otherwise hold for the old uptime."""
    granted(store, holder="nonce@old-container/00000000/1/7/99")
    clock.seconds = 1.0

    assert granted(store).lost == 1


def test_messages_do_not_touch_each_other(store: SqlStore) -> None:
    """Task, id and nesting make the message; each has a lease of its own."""
    others = [MessageId("shop.charge", "n"), MessageId("shop.refund", "m"), MessageId("shop.charge", "m", 1)]
    granted(store)

    assert all(isinstance(acquire(store, other), Run) for other in others)


def test_poison_is_recorded(store: SqlStore, clock: BootClock) -> None:
    """A message that crashed too often is decided dead in the same transaction that found it so."""
    granted(store, holder="me")
    store.end_crashed("me")

    admission = store.acquire(
        Delivery(message=MESSAGE, generation=FIRST, holder="next"), lease=LEASE, limits=Limits(max_crashes=1)
    )

    assert isinstance(admission, Resend)
    assert read(store) == admission.row
    assert read(store).state is State.DEAD


# --- done


def test_done_is_done(store: SqlStore, clock: BootClock) -> None:
    """A completed message keeps its result and is never run again, not even redriven."""
    store.complete(MESSAGE, granted(store), '{"paid": 5}')
    clock.seconds += 1000

    for generation in (FIRST, REDRIVEN):
        admission = acquire(store, generation=generation)
        assert isinstance(admission, AlreadyDone)
        assert admission.row.result == '{"paid": 5}'


def test_a_result_may_be_nothing(store: SqlStore) -> None:
    """No result is kept as no result."""
    store.complete(MESSAGE, granted(store), None)

    assert read(store).result is None


def test_done_stays_done(store: SqlStore) -> None:
    """No write of a holder, however late, turns a done message into anything else."""
    row = granted(store, holder="me")
    store.complete(MESSAGE, row, "1")
    done = read(store)

    for late in (
        lambda: store.complete(MESSAGE, row, "2"),
        lambda: store.decide_waiting(MESSAGE, row, due_ms=1, failure=FAILURE),
        lambda: store.decide_dead(MESSAGE, row, failure=FAILURE),
    ):
        with pytest.raises(LeaseLost):
            late()
    assert not store.end_crashed("me")
    assert not store.release("me")
    store.renew(["me"], LEASE)
    assert read(store) == done


def test_completion_asks_the_token_not_the_time(store: SqlStore, clock: BootClock) -> None:
    """A holder whose lease expired may still complete as long as nobody took over."""
    row = granted(store)
    clock.seconds += 1000

    store.complete(MESSAGE, row, None)

    assert read(store).state is State.DONE


# --- decisions


def test_a_retry_is_recorded(store: SqlStore) -> None:
    """Deciding a retry ends the lease; all of the decision comes back from the store as it was written."""
    decided = store.decide_waiting(MESSAGE, granted(store), due_ms=42, failure=FAILURE)

    assert read(store) == decided
    assert (decided.state, decided.generation, decided.due_ms) == (State.WAITING, Generation(0, 2), 42)
    assert (decided.failure, decided.sent, decided.holder) == (FAILURE, False, None)


def test_a_letter_is_recorded(store: SqlStore) -> None:
    """Deciding a letter ends the lease for good."""
    decided = store.decide_dead(MESSAGE, granted(store), failure=FAILURE)

    assert read(store) == decided
    assert (decided.state, decided.generation, decided.failure) == (State.DEAD, FIRST, FAILURE)


@pytest.mark.parametrize("expire", [True, False], ids=["taken over", "released and taken"])
def test_a_fenced_holder_writes_nothing(store: SqlStore, clock: BootClock, expire: bool) -> None:
    """After a takeover every write of the earlier holder fails and changes nothing."""
    stale = granted(store, holder="me")
    if expire:
        clock.seconds += 15
    else:
        store.release("me")
    current = granted(store)

    for late in (
        lambda: store.complete(MESSAGE, stale, None),
        lambda: store.decide_waiting(MESSAGE, stale, due_ms=1, failure=FAILURE),
        lambda: store.decide_dead(MESSAGE, stale, failure=FAILURE),
    ):
        with pytest.raises(LeaseLost, match="m"):
            late()
    assert not store.end_crashed("me")
    assert not store.release("me")
    assert read(store) == current


def test_a_decision_ends_the_lease(store: SqlStore) -> None:
    """One attempt has one end: the second decision of a holder is refused."""
    row = granted(store)
    store.decide_waiting(MESSAGE, row, due_ms=1, failure=FAILURE)

    with pytest.raises(LeaseLost):
        store.decide_dead(MESSAGE, row, failure=FAILURE)
    with pytest.raises(LeaseLost):
        store.complete(MESSAGE, row, None)


def test_an_unsent_decision_is_resent_until_marked(store: SqlStore) -> None:
    """A redelivery repeats the publish of a decision until somebody marked it sent."""
    decided = store.decide_waiting(MESSAGE, granted(store), due_ms=1, failure=FAILURE)
    assert acquire(store) == Resend(decided)

    assert store.mark_sent(MESSAGE, str(decided.decision))
    assert isinstance(acquire(store), Superseded)


def test_a_late_mark_does_not_pass_for_a_later_decision(store: SqlStore) -> None:
    """A mark names the decision it is for: the same attempt's letter stays unsent."""
    retry = store.decide_waiting(MESSAGE, granted(store), due_ms=1, failure=FAILURE)
    letter = store.decide_dead(MESSAGE, granted(store, generation=retry.generation), failure=FAILURE)

    assert letter.generation == retry.generation
    assert not store.mark_sent(MESSAGE, str(retry.decision))
    assert not read(store).sent
    assert store.mark_sent(MESSAGE, str(letter.decision))
    assert read(store).sent


def test_a_mark_during_the_next_attempt_is_lost(store: SqlStore) -> None:
    """Once the next attempt runs there is no decision left to mark."""
    retry = store.decide_waiting(MESSAGE, granted(store), due_ms=1, failure=FAILURE)
    row = granted(store, generation=retry.generation)

    assert not store.mark_sent(MESSAGE, str(retry.decision))
    assert read(store) == row


def test_a_mark_is_for_one_message(store: SqlStore) -> None:
    """A decision's id says nothing about another message."""
    decided = store.decide_dead(MESSAGE, granted(store), failure=FAILURE)

    assert not store.mark_sent(MessageId("shop.charge", "n"), str(decided.decision))
    assert not read(store).sent


# --- renewal, crash, release


def test_renewal_extends_live_holders_only(store: SqlStore, clock: BootClock) -> None:
    """Of all holders named, those that hold a lease get a whole new one; the others nothing."""
    other, ended = MessageId("shop.charge", "n"), MessageId("shop.charge", "o")
    granted(store, holder="me")
    unnamed = granted(store, other, holder="unnamed")
    store.decide_dead(ended, granted(store, ended, holder="ended"), failure=FAILURE)
    before = read(store, ended)
    clock.seconds += 10

    store.renew(["me", "ended", "nobody"], LEASE)
    store.renew([], LEASE)

    assert read(store).expires == clock.seconds + 15
    assert read(store, other) == unnamed
    assert read(store, ended) == before


def test_renewal_counts_from_when_the_lock_was_had(store: SqlStore, clock: BootClock, path: Path) -> None:
    """A renewal that waited for another writer does not write an expiry that is as old as the wait."""
    granted(store, holder="me")
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    waiting = threading.Event()

    def renew() -> None:
        waiting.set()
        store.renew(["me"], LEASE)

    renewal = threading.Thread(target=renew)
    renewal.start()
    waiting.wait(PATIENCE.total_seconds())
    clock.seconds += 14
    writer.execute("ROLLBACK")
    writer.close()
    renewal.join()

    assert read(store).expires == clock.seconds + 15


def test_a_crash_ends_the_lease_at_once(store: SqlStore) -> None:
    """A crash is counted once, and the next delivery runs without a wait and without a takeover."""
    granted(store, holder="me")

    assert store.end_crashed("me")
    assert not store.end_crashed("me")
    row = granted(store)
    assert (row.crashes, row.lost) == (1, 0)


def test_a_release_is_not_counted(store: SqlStore) -> None:
    """A holder that was stopped on purpose charges nobody."""
    granted(store, holder="me")

    assert store.release("me")
    assert not store.release("me")
    row = granted(store)
    assert (row.crashes, row.lost) == (0, 0)


def test_a_crash_after_the_decision_is_none(store: SqlStore) -> None:
    """A process that dies between decision and publish leaves the decision as it is."""
    decided = store.decide_waiting(MESSAGE, granted(store, holder="me"), due_ms=1, failure=FAILURE)

    assert not store.end_crashed("me")
    assert read(store) == decided
