"""Asking the ledger about a message, and cancelling one: by the task's id, with no result backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unlost.core.ids import Generation, MessageId
from unlost.core.ports import Ledger
from unlost.core.settlement import Row
from unlost.core.standing import Standing, standing_of

#: The generation of a message that nobody has delivered yet.
FIRST = Generation(0, 1)


def outcome_of(ledger: Ledger, task: str, task_id: str, decode: Callable[[str | None], Any]) -> Standing:
    """Return where a task's message stands; see :meth:`unlost.ReliableTask.outcome`.

    Args:
        ledger: That has its row.
        task: The task's name.
        task_id: The message's id.
        decode: Makes a value of a recorded result.
    """
    _, row = _latest(ledger, task, task_id)
    return standing_of(row, decode(row.result) if row else None)


def cancel(ledger: Ledger, task: str, task_id: str) -> bool:
    """Mark a task's message cancelled; see :meth:`unlost.ReliableTask.cancel`."""
    message, row = _latest(ledger, task, task_id)
    return ledger.cancel(message, row.generation if row else FIRST)


def _latest(ledger: Ledger, task: str, task_id: str) -> tuple[MessageId, Row | None]:
    """Return a message and its row: the last of those that put themselves in their own place."""
    message = MessageId(task, task_id)
    row = ledger.read(message)
    while row is not None:
        following = message._replace(nesting=message.nesting + 1)
        replacement = ledger.read(following)
        if replacement is None:
            break
        message, row = following, replacement
    return message, row
