"""Hands the pool's processes their jobs at once, and each in one write.

Celery's pool asks the kernel for leave first: for each job it registers the pipes of all processes with
the event loop, goes round it, writes the job's length and then the job, and takes the pipes out again, some
ten system calls. A pipe of a process that has nothing to do is empty, so it can be written to right away;
where it cannot, the pool's own code waits until it can.
"""

from __future__ import annotations

import select
from typing import Any

from celery.concurrency.asynpool import SCHED_STRATEGY_FAIR

#: A write of at most this many bytes to a pipe is whole or not at all (POSIX, ``write``).
ATOMIC = select.PIPE_BUF


class Handover:
    """Stands in for what the pool does in each turn of the event loop before it waits.

    Args:
        pool: Celery's ``AsynPool``, registered with the loop.
        hub: kombu's event loop.
    """

    def __init__(self, pool: Any, hub: Any) -> None:
        self._pool = pool
        self._hub = hub
        self._pools_own = pool.on_poll_start
        self._waits = False

    @classmethod
    def applies_to(cls, pool: Any) -> bool:
        """Whether a pool gives jobs only to processes that have none (``-O fair``, the default)."""
        return bool(getattr(pool, "sched_strategy", None) == SCHED_STRATEGY_FAIR)

    def install(self) -> None:
        """Take the pool's place in the event loop; again after each registration with it."""
        put = self._pool._quick_put
        cache = self._pool._cache

        def put_whole(job: Any) -> None:
            try:
                put(job)
            except Exception:
                # It cannot be pickled: else the pool would wait for the end of what never begins.
                cache.pop(job[1][0], None)
                raise
            _join(cache[job[1][0]])

        self._pool._quick_put = put_whole
        self._hub.on_tick.discard(self._pools_own)
        self._hub.on_tick.add(self.before_waiting)

    def before_waiting(self) -> None:
        """Write jobs to idle processes; where that leads nowhere, wait as the pool does."""
        waiting = self._pool.outbound_buffer
        while waiting and (idle := self._idle()):
            before = len(waiting)
            self._hub.consolidate_callback(idle)
            if len(waiting) >= before:
                self._waits = True
                break
        if self._waits:
            self._pools_own()
            self._waits = bool(waiting)

    def _idle(self) -> list[int]:
        pool = self._pool
        return [*(pool._all_inqueues - pool._busy_workers - pool._active_writes)]


def _join(job: Any) -> None:
    """Make one of a job's length and body, if they can be written in one go."""
    length, body, size = job._payload
    if len(length) + size <= ATOMIC:
        # The pool writes on until the length is written, and is then done with both.
        job._payload = memoryview(bytes(length) + bytes(body)), memoryview(b""), 0
