"""``unlost.publishing``: a block in which publishes do not wait for their confirms one by one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from celery import Celery

from unlost.broker.errors import PublishErrors
from unlost.broker.window import Published, Window
from unlost.core.message import Outgoing
from unlost.core.outcome import Outcome
from unlost.tasks.runtime import runtime_of
from unlost.tasks.sink import Owned, installed

logger = logging.getLogger(__name__)


class Publishing(Owned):
    """An open block of :func:`publishing`: what has been confirmed, and what has not."""

    publishes = True
    tells = True

    def __init__(self, window: Window) -> None:
        super().__init__()
        self._window = window
        self._problems: list[Published] = []
        self._confirmed = 0

    @property
    def confirmed(self) -> int:
        """Return how many messages are confirmed so far."""
        return self._confirmed

    @property
    def problems(self) -> tuple[Published, ...]:
        """Return those that are known to have failed, or not known to be safe, so far."""
        return tuple(self._problems)

    def takes(self, *, settling: bool) -> bool:
        """Whether it is open for this thread; what follows from a task that is done is confirmed alone."""
        return not settling and self._is_mine()

    def put(self, message: Outgoing) -> None:
        """Take a message; waits while the window is full."""
        self._window.put(message)
        self._take_stock()

    def settle(self) -> None:
        """Wait until each message that was published in the block has an outcome."""
        self._window.settle()
        self._take_stock()

    def close(self) -> None:
        """Take no more; what has no outcome stays in doubt."""
        super().close()
        self._window.close()

    def _take_stock(self) -> None:
        for published in self._window.settled():
            if published.outcome is Outcome.OK:
                self._confirmed += 1
            else:
                self._problems.append(published)


@contextmanager
def publishing(app: Celery, *, window: int = 200, patience: timedelta | None = None) -> Iterator[Publishing]:
    """Publish without waiting for each confirm: up to ``window`` of them are awaited together.

    Every ``delay()`` and ``apply_async()`` of the app in this thread returns as soon as its message is on
    its way; when the block ends, all of them are confirmed, or an error names those that are not. What a
    settlement publishes (a retry, a letter, the links of a task that is done) never goes through a window.

    Args:
        app: The application.
        window: How many messages may be unconfirmed at once.
        patience: How long to go on while nothing gets through; ``publish_patience`` when not given.

    Yields:
        What is known so far.

    Raises:
        PublishErrors: Messages failed or are unknown; it names each. An exception of the block's own is
            raised instead, with a note about them.
        ConfigurationError: unlost is not installed on the app.
        ValueError: The window is below 1.

    Crash safety:
        A crash inside the block leaves up to ``window`` messages stored or not.
    """
    runtime = runtime_of(app)
    opened = Publishing(runtime.publisher.window(window, patience=patience))
    with installed(runtime.sink, opened):
        try:
            yield opened
        except Exception as exc:
            opened.settle()
            if problems := opened.problems:
                exc.add_note(_summary(problems))
                logger.error("%s", _summary(problems))  # noqa: TRY400 - the block's error is raised
            raise
        opened.settle()
        if problems := opened.problems:
            raise PublishErrors(_summary(problems), problems)


def _summary(problems: tuple[Published, ...]) -> str:
    unknown = sum(each.outcome is Outcome.UNKNOWN for each in problems)
    return f"{len(problems) - unknown} messages failed, {unknown} are unknown; the first: {problems[0].error}"
