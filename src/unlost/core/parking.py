"""How long a message waits that nobody here can handle yet, as in the middle of a rolling deploy."""

from __future__ import annotations

from datetime import timedelta

SHORTEST = timedelta(seconds=1)
LONGEST = timedelta(minutes=1)


def next_park(parks: int, patience: timedelta) -> timedelta | None:
    """Return how long to park a message next, or ``None`` when its patience is over.

    The waits double from a second to a minute. Only their number travels with the message, so that no clock
    and no store is asked.

    Args:
        parks: How often it was parked before.
        patience: How long it may wait in all.
    """
    return _wait(parks) if _waited(parks) < patience else None


def _wait(parks: int) -> timedelta:
    return min(SHORTEST * (1 << min(parks, 16)), LONGEST)


def _waited(parks: int) -> timedelta:
    doubling = min(parks, 16)
    return sum((_wait(each) for each in range(doubling)), timedelta(0)) + LONGEST * (parks - doubling)
