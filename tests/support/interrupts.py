"""Interrupts from a signal's handler, as a soft time limit is one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(Exception):
    """Raised wherever the main thread is."""


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Raise :class:`Interrupted` in the block when so many seconds have passed."""
    before = signal.signal(signal.SIGALRM, _interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _interrupt(*_: object) -> None:
    raise Interrupted
