"""Time as a value that is handed in, so that tests can turn the hands."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Wall-clock time; aware UTC."""

    def now(self) -> datetime:
        """Return the present moment, aware and in UTC."""


class SystemClock:
    """The clock of this host."""

    def now(self) -> datetime:
        """Return the present moment, aware and in UTC."""
        return datetime.now(UTC)


class FakeClock:
    """A clock that moves only when told to.

    Args:
        start: Where it begins; aware.
    """

    def __init__(self, start: datetime) -> None:
        self._now = start

    def now(self) -> datetime:
        """Return the moment the clock was last set to."""
        return self._now

    def advance(self, by: timedelta) -> None:
        """Move forward."""
        self._now += by


def epoch_ms(moment: datetime) -> int:
    """Return milliseconds since the epoch, the unit of time in our headers."""
    return int(moment.timestamp() * 1000)


def from_epoch_ms(value: int) -> datetime:
    """Return the aware UTC moment of a header's milliseconds."""
    return datetime.fromtimestamp(value / 1000, UTC)


def moment_of(value: datetime | str) -> datetime:
    """Return an aware moment; ISO 8601 text is read, and what is naive is UTC as in Celery's messages.

    Raises:
        ValueError: The text is no moment.
    """
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def boot_time() -> float:
    """Return seconds since this host booted; unlike monotonic time it also counts suspended hours."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
