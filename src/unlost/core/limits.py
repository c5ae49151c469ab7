"""How many messages may start, across all workers: a rate, and how many at once.

A worker takes a message from the broker only when it has a permit for it. So what is beyond the limit stays
in its queue: in order, in nobody's memory, and no attempt is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from unlost.errors import ConfigurationError

#: Seconds by which sums of moments since 1970 may be off.
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How fast the tasks that name it may start, in all workers together.

    In any time ``t`` at most ``burst + rate * t / per`` permits are given.

    Args:
        name: The same in all workers; tasks that name the same share it.
        rate: How many in each ``per``; ``None`` for no bound.
        per: The unit of the rate.
        burst: How many may start at once after a quiet time.
        concurrent: How many may run at the same time; ``None`` for no bound. Like a lease it is no lock:
            what a worker that stood still for longer than a lease was running may run beside others.

    Raises:
        ConfigurationError: Neither ``rate`` nor ``concurrent`` is given, or a value is out of range.
    """

    name: str
    rate: int | None = None
    per: timedelta = timedelta(seconds=1)
    burst: int = 1
    concurrent: int | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigurationError("Limit(name=...) is empty: name what is limited")
        if self.rate is None and self.concurrent is None:
            raise ConfigurationError(f"Limit({self.name!r}) limits nothing: give rate=, concurrent= or both")
        for name in ("rate", "burst", "concurrent"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"Limit({self.name!r}): {name}={value!r} must be at least 1")
        if self.per <= timedelta(0):
            raise ConfigurationError(f"Limit({self.name!r}): per must be longer than zero")

    @property
    def interval(self) -> float | None:
        """Return the seconds between two permits at the full rate."""
        return None if self.rate is None else self.per.total_seconds() / self.rate


@dataclass(frozen=True, slots=True)
class Grant:
    """Permits, and how long until there may be another.

    Attributes:
        permits: How many messages may be taken.
        paid_until: The limit's new state: up to when the rate is used up, seconds of the store's clock.
        wait: Seconds until the rate has another permit; 0 when it has one now.
    """

    permits: int
    paid_until: float
    wait: float


def granted(limit: Limit, *, wanted: int, taken: int, paid_until: float, now: float) -> Grant:
    """Give as many permits as the limit allows.

    The rate is the generic cell rate algorithm: each permit pays for one interval, and nobody pays
    further ahead than ``burst`` intervals.

    Args:
        limit: The rules.
        wanted: How many are asked for.
        taken: How many messages run, in all workers.
        paid_until: The limit's state.
        now: The store's clock, seconds.
    """
    permits = wanted if limit.concurrent is None else min(wanted, max(0, limit.concurrent - taken))
    interval = limit.interval
    if interval is None:
        return Grant(permits, paid_until, 0.0)
    # In seconds from now: at the size of a clock's, a double knows a quarter of a microsecond.
    ahead = max(0.0, paid_until - now)
    most = limit.burst * interval
    room = int((most - ahead + _ROUNDING) / interval)
    permits = max(0, min(permits, room))
    wait = max(0.0, ahead + (permits + 1) * interval - most)
    return Grant(permits, max(paid_until, now) + permits * interval, wait)


def refunded(limit: Limit, *, unused: int, paid_until: float) -> float:
    """Return the state after permits were given back, because there were fewer messages."""
    return paid_until - unused * (limit.interval or 0.0)
