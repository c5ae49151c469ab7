"""What a store writes of a row that is done is all that being done changes."""

from __future__ import annotations

from unlost.core import settlement
from unlost.core.headers import Failure
from unlost.core.ids import Generation
from unlost.core.settlement import Row, State
from unlost.idempotency.records import ENDING, EVERYTHING


def test_being_done_changes_no_field_that_is_not_written() -> None:
    """Else a record would keep what the ledger has been told is over."""
    row = Row(
        state=State.LEASED,
        generation=Generation(1, 2),
        token=3,
        holder="h",
        expires=4.0,
        decision="d",
        sent=True,
        crashes=5,
        lost=6,
        due_ms=7,
        started_ms=8,
        result="1",
        failure=Failure(reason="r"),
    )
    done = settlement.done(row, result="2")
    assert {name for name in EVERYTHING if getattr(row, name) != getattr(done, name)} == ENDING
