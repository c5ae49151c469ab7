"""What several attempts at one message prove together, and how long to go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from tenacity import RetryCallState

from unlost.broker.errors import ConfirmUnknown, Refused
from unlost.errors import BrokerError

#: Longest and shortest time for one connection; in between it is what is left of the patience.
CONNECT_TIMEOUT = timedelta(seconds=5)
SHORTEST_CONNECT_TIMEOUT = timedelta(seconds=1)


class Attempts:
    """What is known of a message after several attempts: one unknown among them makes all unknown.

    Args:
        patience: Seconds to go on once the broker was reached.
        connect_patience: Seconds to go on while nothing could be sent.
    """

    def __init__(self, *, patience: float, connect_patience: float) -> None:
        self._patience = patience
        self._connect_patience = connect_patience
        self._began = time.monotonic()
        self._reached = False
        self._unknown: ConfirmUnknown | None = None

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """Note what an attempt tells about the broker and the message."""
        try:
            yield
        except ConfirmUnknown as exc:
            self._reached, self._unknown = True, exc
            raise
        except Refused:
            self._reached = True
            raise

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Raise the unknown in place of a later failure: that one proves nothing about earlier copies."""
        try:
            yield
        except BrokerError as exc:
            if self._unknown is None or exc is self._unknown:
                raise
            raise self._unknown from exc

    def are_over(self, _: RetryCallState | None = None) -> bool:
        """Whether the patience is spent."""
        return self._left() <= 0

    def time_to_connect(self) -> timedelta:
        """Return how long the next connection may take."""
        return connect_timeout(self._left())

    def _left(self) -> float:
        patience = self._patience if self._reached else self._connect_patience
        return self._began + patience - time.monotonic()


def connect_timeout(left: float) -> timedelta:
    """Return how long a connection may take when so many seconds of the patience are left."""
    return min(max(timedelta(seconds=left), SHORTEST_CONNECT_TIMEOUT), CONNECT_TIMEOUT)
