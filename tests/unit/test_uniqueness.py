"""Which message stands for a unique piece of work, and when it stands in nobody's way any more."""

from __future__ import annotations

from datetime import timedelta

import pytest

from unlost.core.ids import Generation, MessageId
from unlost.core.settlement import Row, State
from unlost.core.uniqueness import (
    Occupant,
    Unique,
    holder_of,
    is_over,
    is_unique_record,
    lease_of,
    occupant_of,
    unique_id,
)
from unlost.idempotency.holder import is_gone, is_of_another_boot

MESSAGE = MessageId("shop.pack", "m", 1)
OCCUPANT = Occupant(MESSAGE, 60.0)


def row(state: State) -> Row:
    """Return the message's row in a state."""
    return Row(state=state, generation=Generation(0, 1), token=1)


@pytest.mark.parametrize(
    ("unique", "over"),
    [
        ("until_started", set(State)),
        ("until_finished", {State.DONE, State.DEAD, State.CANCELLED}),
        (timedelta(minutes=1), set()),
    ],
)
def test_a_message_is_over_when_the_task_says_so(unique: Unique, over: set[State]) -> None:
    """Before a worker has begun it never; then in these states."""
    assert not is_over(unique, OCCUPANT, 30, None)
    assert {state for state in State if is_over(unique, OCCUPANT, 30, row(state))} == over


def test_a_lease_that_is_longer_than_it_was_given_is_over() -> None:
    """SQLite's clock begins anew with its host: a lease of before would seem to last for days."""
    assert is_over(timedelta(minutes=1), OCCUPANT, 5000, None)
    assert not is_over(timedelta(minutes=1), OCCUPANT, 60, None)


def test_a_message_is_no_process() -> None:
    """Nobody takes the holder that a message is for a dead process, on whatever host."""
    assert not is_gone(holder_of(MESSAGE))
    assert not is_of_another_boot(holder_of(MESSAGE))
    assert len(holder_of(MessageId("t" * 230, "i" * 230))) < 255


def test_a_record_says_which_message_holds_it() -> None:
    """What is noted is read again; a record that a publisher holds names none."""
    held = row(State.LEASED)._replace(result=OCCUPANT.note())

    assert occupant_of(held) == OCCUPANT
    assert occupant_of(row(State.LEASED)) is None
    assert occupant_of(None) is None


def test_arguments_are_not_shown_by_the_record() -> None:
    """Work that is told by all arguments is named by their digest: they may be secret."""
    record = unique_id("shop.pack", {"card": "4111"})

    assert "4111" not in str(record)
    assert is_unique_record(str(record))
    assert record == unique_id("shop.pack", {"card": "4111"})
    assert record != unique_id("shop.pack", {"card": 4111})
    assert not is_unique_record(str(MESSAGE))


def test_a_lease_counts_from_when_the_message_may_run() -> None:
    """A time that the task gives counts from the publish, the bound of the others from the due time."""
    hour = timedelta(hours=1)

    assert lease_of("until_finished", hour, timedelta(minutes=5)) == hour + timedelta(minutes=5)
    assert lease_of(timedelta(minutes=2), hour, timedelta(minutes=5)) == timedelta(minutes=2)
