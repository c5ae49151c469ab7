"""Waiting for something that can be observed, never for time to pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from unlost.errors import HarnessError

T = TypeVar("T")

POLL = timedelta(milliseconds=50)


def wait_until(
    condition: Callable[[], T],
    timeout: timedelta,
    what: str,
    *,
    poll: timedelta = POLL,
    why_not: Callable[[], object] | None = None,
) -> T:
    """Ask ``condition`` again and again until it answers something true, and return that answer.

    The condition is asked at least once, and once more at the deadline, so that a slow machine
    does not fail what has in fact happened.

    Args:
        condition: What to wait for. An exception it raises is not caught.
        timeout: The bound; ``timedelta(0)`` asks once.
        what: What is awaited, for the error: "the queue is empty".
        poll: The pause between two questions.
        why_not: Asked after the deadline; its answer is appended to the error.

    Raises:
        HarnessError: The condition was not true within ``timeout``.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        last_chance = time.monotonic() >= deadline
        if answer := condition():
            return answer
        if last_chance:
            reason = f": {why_not()}" if why_not else ""
            raise HarnessError(f"waited {timeout.total_seconds():g} s in vain until {what}{reason}")
        time.sleep(poll.total_seconds())
