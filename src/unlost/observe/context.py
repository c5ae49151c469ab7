"""What every log line inside a task says: which task, which attempt, where from, part of what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from unlost.core.ids import Generation, MessageId

CORRELATION = "correlation_id"


@contextmanager
def task_context(
    message: MessageId, generation: Generation, queue: str, correlation_id: str
) -> Iterator[None]:
    """Bind a task's context into structlog for as long as the manager is open.

    Shown by any configuration that has ``structlog.contextvars.merge_contextvars``.
    """
    before = structlog.contextvars.bind_contextvars(
        task=message.task,
        task_id=message.id,
        attempt=generation.attempt,
        queue=queue,
        correlation_id=correlation_id,
    )
    try:
        yield
    finally:
        structlog.contextvars.reset_contextvars(**before)


def current_correlation_id() -> str | None:
    """Return the correlation id that the application has bound, in a web request for instance."""
    value = structlog.contextvars.get_contextvars().get(CORRELATION)
    return str(value) if value else None
