"""What every log line inside a task says: which task, which attempt, where from, part of what."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextvars import Token
from types import ModuleType
from typing import Any

from unlost.core.ids import Generation, MessageId

CORRELATION = "correlation_id"


class TaskContext:
    """Has a task's context bound into structlog while it is open, if the application uses structlog.

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
        if (bound := _contextvars()) is not None:
            self._before = bound.bind_contextvars(**self._shown)

    def __exit__(self, *_exc: object) -> None:
        """Bind what was bound before."""
        if self._before and (bound := _contextvars()) is not None:
            bound.reset_contextvars(**self._before)


def current_correlation_id() -> str | None:
    """Return the correlation id that the application has bound, in a web request for instance."""
    bound = _contextvars()
    value = None if bound is None else bound.get_contextvars().get(CORRELATION)
    return str(value) if value else None


def _contextvars() -> ModuleType | None:
    """Return structlog's module if it is loaded: who shows or binds something has loaded it.

    To load it for nobody would take a worker a fifth of the CPU time of its start.
    """
    return sys.modules.get("structlog.contextvars")
