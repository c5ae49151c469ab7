"""The moments of a delivery at which a crash must do no harm, for those who make one happen there.

Nothing is done at them unless an observer is set: one comparison each. Set it in a test's worker module::

    runtime.points.observer = lambda point, message: ...   # SIGKILL, SIGSTOP, an exception, a note
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from unlost.core.ids import MessageId


class Point(StrEnum):
    """Where a delivery is, in order; the first and the last two are reached in the worker's parent."""

    #: The parent has the delivery; no process has been given it.
    RECEIVED = "received"

    #: The ledger has not been asked yet.
    ACQUIRING = "acquiring"
    #: The lease is ours; the body has not begun.
    ACQUIRED = "acquired"
    #: The unit of work's block has ended; its COMMIT is the next thing to be sent.
    COMMITTING = "committing"
    #: The effect and the done record are committed; the successors are not published.
    COMMITTED = "committed"
    #: A retry or a letter is decided; it is not published.
    DECIDED = "decided"
    #: It is published and confirmed; it is not marked as sent.
    PUBLISHED = "published"
    #: All that follows is published; the parent has not heard of it.
    SETTLED = "settled"
    #: The parent is about to ack.
    ACKING = "acking"
    #: It has acked; the broker may not have heard of it.
    ACKED = "acked"


#: Reached in the worker's parent; all others in the process that runs the body.
OF_THE_PARENT = frozenset({Point.RECEIVED, Point.ACKING, Point.ACKED})


Observer = Callable[[Point, MessageId], None]


class Points:
    """Tells an observer, if there is one, what is reached."""

    __slots__ = ("observer",)

    def __init__(self) -> None:
        self.observer: Observer | None = None

    def reach(self, point: Point, message: MessageId) -> None:
        """Tell that a message's delivery has come so far."""
        if self.observer is not None:
            self.observer(point, message)
