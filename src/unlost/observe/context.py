"""What every log line inside a task says: which task, which attempt, where from, part of what."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import Token
from typing import Any

import structlog

from unlost.core.ids import Generation, MessageId

CORRELATION = "correlation_id"


class TaskContext:
    """Has a task's context bound into structlog while it is open.

    Shown by any configuration that has ``structlog.contextvars.merge_contextvars``.
    """

    __slots__ = ("_before", "_shown")

    def __init__(self, message: MessageId, generation: Generation, queue: str, correlation_id: str) -> None:
        self._shown = {
            "task": message.task,
            "task_id": message.id,
            "attempt": generation.attempt,
            "queue": queue,
            CORRELATION: correlation_id,
        }
        self._before: Mapping[str, Token[Any]] = {}

    def __enter__(self) -> None:
        """Bind it."""
        self._before = structlog.contextvars.bind_contextvars(**self._shown)

    def __exit__(self, *_exc: object) -> None:
        """Bind what was bound before."""
        structlog.contextvars.reset_contextvars(**self._before)


def current_correlation_id() -> str | None:
    """Return the correlation id that the application has bound, in a web request for instance."""
    value = structlog.contextvars.get_contextvars().get(CORRELATION)
    return str(value) if value else None
