"""Where a message stands, for whoever asks by its id."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from unlost.core.clock import from_epoch_ms
from unlost.core.headers import Failure
from unlost.core.settlement import Row, State


class Stands(StrEnum):
    """What the ledger knows of a message."""

    #: No row: never delivered to a worker yet, never published, or forgotten. It proves none of them.
    UNKNOWN = "unknown"
    LEASED = "leased"
    WAITING = "waiting"
    DEAD = "dead"
    DONE = "done"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a message stands.

    Attributes:
        state: What the ledger says.
        result: What the task returned, when done: JSON as links receive it.
        failure: Why it is dead, or why the attempt before this one failed.
        attempt: The present or last attempt, from 1.
        redrives: How often an operator has sent it back.
        crashes: Processes that it has taken down.
        lost: Workers, hosts or connections that were lost with it.
        not_before: When it is tried again, if it waits.
    """

    state: Stands
    result: Any = None
    failure: Failure | None = None
    attempt: int = 0
    redrives: int = 0
    crashes: int = 0
    lost: int = 0
    not_before: datetime | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens by itself: done, dead or cancelled."""
        return self.state in (Stands.DONE, Stands.DEAD, Stands.CANCELLED)

    @property
    def reason(self) -> str | None:
        """Return the dead letter's reason; ``None`` if there is no letter."""
        return self.failure.reason if self.state is Stands.DEAD and self.failure else None


def standing_of(row: Row | None, result: Any = None) -> Standing:
    """Return what a row says.

    Args:
        row: The message's row, or ``None``.
        result: The row's result, decoded.
    """
    if row is None:
        return Standing(state=Stands.UNKNOWN)
    waits = row.state is State.WAITING and row.due_ms is not None
    return Standing(
        state=Stands(row.state.value),
        result=result,
        failure=row.failure,
        attempt=row.generation.attempt,
        redrives=row.generation.redrives,
        crashes=row.crashes,
        lost=row.lost,
        not_before=from_epoch_ms(row.due_ms) if waits and row.due_ms is not None else None,
    )
