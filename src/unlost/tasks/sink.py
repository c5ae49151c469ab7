"""What takes the messages of a context in place of the broker: the one way to get at them rendered.

Celery renders and publishes in one go, so whoever wants messages without sending them (a bulk, the outbox)
lets ``apply_async`` run as ever, and takes each message where the producer would send it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

from unlost.core.message import Outgoing


class Sink(Protocol):
    """Takes the messages that would be published, while it is open in this thread."""

    #: Whether it publishes what it takes; otherwise it wants messages as they are rendered.
    publishes: bool

    #: Whether Celery's ``task-sent`` event may be sent for what it takes.
    tells: bool

    def takes(self, *, settling: bool) -> bool:
        """Whether it is open for this thread, and for what follows from a task that is done."""

    def put(self, message: Outgoing) -> None:
        """Take a message."""

    def close(self) -> None:
        """Take no more."""


#: The sink of a context; ``None`` sends every message to the broker by itself.
SinkVar = ContextVar[Sink | None]

S = TypeVar("S", bound=Sink)


class Owned:
    """Belongs to the thread that made it: a context variable is also seen by what that thread starts."""

    def __init__(self) -> None:
        self._owner = (os.getpid(), threading.get_ident())
        self._open = True

    def _is_mine(self) -> bool:
        return self._open and self._owner == (os.getpid(), threading.get_ident())

    def close(self) -> None:
        """Take no more."""
        self._open = False


class Captured(Owned):
    """Keeps what would be published instead of publishing it.

    Args:
        tells: False if what is kept is not sent soon, so that nobody must be told that it was.
    """

    publishes = False

    def __init__(self, *, tells: bool) -> None:
        super().__init__()
        self.tells = tells
        self.messages: list[Outgoing] = []

    def takes(self, *, settling: bool) -> bool:  # noqa: ARG002 - nothing is published here at all
        """Whether it is open for this thread."""
        return self._is_mine()

    def put(self, message: Outgoing) -> None:
        """Take a message."""
        self.messages.append(message)


def is_captured(variable: SinkVar) -> bool:
    """Return whether what this thread publishes now is kept instead of sent."""
    sink = variable.get()
    return sink is not None and not sink.publishes and sink.takes(settling=False)


@contextmanager
def installed(variable: SinkVar, sink: S) -> Iterator[S]:
    """Let a sink take what this context publishes in the block, and close it at the end."""
    token = variable.set(sink)
    try:
        yield sink
    finally:
        variable.reset(token)
        sink.close()


@contextmanager
def captured(variable: SinkVar, *, tells: bool = True) -> Iterator[Captured]:
    """Keep what this thread publishes in the block, and publish nothing."""
    with installed(variable, Captured(tells=tells)) as kept:
        yield kept
