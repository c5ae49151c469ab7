"""Keeps a fork from happening while a database is in use, and the database closed while it happens.

SQLite keeps what locks a process holds in that process's memory. A child that is forked while a
connection is open inherits that memory but not the locks: it waits for ever for a lock that a ghost of
its parent's connection holds, or believes that it holds one which the kernel never gave it
(https://www.sqlite.org/howtocorrupt.html, 2.6). Celery's parent forks whenever it replaces a child.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ForkGate:
    """Operations go through :meth:`open`; a fork waits for those of other threads and closes the rest.

    Args:
        close: Closes everything that must not be inherited; called before each fork of this process.
    """

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close
        self._condition = threading.Condition()
        self._busy: Counter[int] = Counter()
        gate = weakref.ref(self)
        os.register_at_fork(
            before=lambda: _call(gate, ForkGate._before),
            after_in_parent=lambda: _call(gate, ForkGate._after),
            after_in_child=lambda: _call(gate, ForkGate._after),
        )

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold forks off while the database is in use by this thread."""
        thread = threading.get_ident()
        with self._condition:
            self._busy[thread] += 1
        try:
            yield
        finally:
            with self._condition:
                self._busy[thread] -= 1
                self._condition.notify_all()

    def _before(self) -> None:
        # Held across the fork, so that nobody begins in between; a Condition's lock is reentrant.
        self._condition.acquire()
        # A thread that forks inside its own operation cannot be waited for.
        self._condition.wait_for(self._nobody_else)
        self._close()

    def _nobody_else(self) -> bool:
        own = threading.get_ident()
        return not any(count for thread, count in self._busy.items() if thread != own)

    def _after(self) -> None:
        self._condition.release()


def _call(gate: weakref.ref[ForkGate], hook: Callable[[ForkGate], None]) -> None:
    alive = gate()
    if alive is not None:
        hook(alive)
