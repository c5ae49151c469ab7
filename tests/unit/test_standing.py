"""Asking a ledger where a message stands, cancelling one, and remembering what was revoked."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from tests.support.ledgers import FIRST, LEASE, LIMITS
from unlost.core.headers import Failure
from unlost.core.ids import MessageId
from unlost.core.settlement import Delivery, Row, Run
from unlost.core.standing import Standing, Stands
from unlost.idempotency.memory import MemoryStore
from unlost.tasks.control import record, recorded
from unlost.tasks.standing import cancel, outcome_of

TASK = "shop.charge"
FAILURE = Failure(reason="permanent", exception="no")


@pytest.fixture
def ledger() -> MemoryStore:
    """An empty ledger."""
    return MemoryStore()


def outcome(ledger: MemoryStore, task_id: str) -> Standing:
    """Return where a message of the task stands."""
    return outcome_of(ledger, TASK, task_id, lambda result: None if result is None else json.loads(result))


def granted(ledger: MemoryStore, message: MessageId) -> Row:
    """Return the row of a message that was just leased."""
    delivery = Delivery(message=message, generation=FIRST, holder="somebody")
    admission = ledger.acquire(delivery, lease=LEASE, limits=LIMITS)
    assert isinstance(admission, Run)
    return admission.row


def test_what_the_ledger_has_no_row_of_is_unknown(ledger: MemoryStore) -> None:
    """Absence proves nothing, so it has not ended either."""
    standing = outcome(ledger, "m")
    assert (standing.state, standing.has_ended, standing.reason) == (Stands.UNKNOWN, False, None)


def test_a_message_is_followed_from_lease_to_done(ledger: MemoryStore) -> None:
    """First ``leased``, then ``done`` with the decoded result."""
    row = granted(ledger, MessageId(TASK, "m"))
    assert outcome(ledger, "m").state is Stands.LEASED
    ledger.complete(MessageId(TASK, "m"), row, '{"paid": 7}')
    standing = outcome(ledger, "m")
    assert (standing.state, standing.result, standing.attempt) == (Stands.DONE, {"paid": 7}, 1)


def test_a_waiting_message_says_when_and_why(ledger: MemoryStore) -> None:
    """The next attempt's number and time, and the last one's failure; no letter, so no reason."""
    row = granted(ledger, MessageId(TASK, "m"))
    ledger.decide_waiting(MessageId(TASK, "m"), row, due_ms=1_800_000_000_000, failure=FAILURE)
    standing = outcome(ledger, "m")
    assert (standing.state, standing.attempt) == (Stands.WAITING, 2)
    assert standing.not_before == datetime.fromtimestamp(1_800_000_000, UTC)
    assert (standing.failure, standing.reason) == (FAILURE, None)


def test_a_dead_message_says_why(ledger: MemoryStore) -> None:
    """The letter's reason."""
    row = granted(ledger, MessageId(TASK, "m"))
    ledger.decide_dead(MessageId(TASK, "m"), row, failure=FAILURE)
    standing = outcome(ledger, "m")
    assert (standing.state, standing.reason, standing.has_ended) == (Stands.DEAD, "permanent", True)


def test_a_cancel_is_final_and_loses_to_done(ledger: MemoryStore) -> None:
    """Before any delivery and in the middle of one it wins; afterwards it does not."""
    assert cancel(ledger, TASK, "early")
    granted(ledger, MessageId(TASK, "running"))
    assert cancel(ledger, TASK, "running")
    ledger.complete(MessageId(TASK, "m"), granted(ledger, MessageId(TASK, "m")), None)
    assert not cancel(ledger, TASK, "m")
    found = [outcome(ledger, each).state for each in ("early", "running", "m")]
    assert found == [Stands.CANCELLED, Stands.CANCELLED, Stands.DONE]


def test_the_last_replacement_speaks_for_the_message(ledger: MemoryStore) -> None:
    """A task that replaced itself is done when its replacement is, and is cancelled there."""
    ledger.complete(MessageId(TASK, "m"), granted(ledger, MessageId(TASK, "m")), None)
    granted(ledger, MessageId(TASK, "m", 1))
    assert outcome(ledger, "m").state is Stands.LEASED
    assert cancel(ledger, TASK, "m")
    assert outcome(ledger, "m").state is Stands.CANCELLED


def test_revoked_ids_are_remembered_and_nothing_else(ledger: MemoryStore) -> None:
    """What was written down is read again, once each, whatever else the ledger holds."""
    granted(ledger, MessageId(TASK, "celery.revoked[x]"))
    record(ledger, ["a", "b", "a"])
    assert sorted(recorded(ledger)) == ["a", "b"]
