"""Hands the pool's processes their jobs at once, each in one write, and knows from then on who has it.

Celery's pool asks the kernel for leave first: for each job it registers the pipes of all processes with
the event loop, goes round it, writes the job's length and then the job, and takes the pipes out again, some
ten system calls. A pipe of a process that has nothing to do is empty, so it can be written to right away;
where it cannot, the pool's own code waits until it can.

A process then tells that it has accepted the job. Until that is read, the pool takes the job for one that
nobody has: a worker that stops gives it back while it runs, so that it runs twice, and leaves the process to
wait for half a minute until its end is heard (seen with plain Celery 5.7.0 too). But a job in the pipe of an
idle process is that process's. So the parent enters the acceptance itself, and the process is told, by the
number that billiard otherwise uses for parts of a ``map``, to send none. It writes down what it has begun
where the parent can look it up (``tasks/begun.py``): what a process that dies has not begun, another does.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
import time
from collections.abc import Iterable
from typing import Any

from billiard.pool import ACK, RUN
from celery.concurrency.asynpool import SCHED_STRATEGY_FAIR

from unlost.tasks.begun import NOTED, Begun

#: A write of at most this many bytes to a pipe is whole or not at all (POSIX, ``write``).
ATOMIC = select.PIPE_BUF


class Handover:
    """Stands in for what the pool does in each turn of the event loop before it waits.

    Args:
        pool: Celery's ``AsynPool``, registered with the loop.
        hub: kombu's event loop.
        begun: What the pool's processes have begun.
    """

    def __init__(self, pool: Any, hub: Any, begun: Begun) -> None:
        self._pool = pool
        self._hub = hub
        self._begun = begun
        self._pools_own = pool.on_poll_start
        self._pools_write: Any = None
        self._pools_flush = pool.process_flush_queues
        self._waits = False
        # Of a process that is about to be replaced, its successor gets what is in the pipe: only the
        # process that has begun can tell.
        self._is_final = not (pool._maxtasksperchild or pool._max_memory_per_child)

    @classmethod
    def applies_to(cls, pool: Any) -> bool:
        """Whether a pool gives jobs only to processes that have none (``-O fair``, the default)."""
        return bool(getattr(pool, "sched_strategy", None) == SCHED_STRATEGY_FAIR)

    def install(self) -> None:
        """Take the pool's place in the event loop; again after each registration with it."""
        put = self._pool._quick_put
        cache = self._pool._cache
        waiting = self._pool.outbound_buffer

        def put_whole(job: Any) -> None:
            kind, (number, _, *call) = job
            try:
                put((kind, (number, NOTED, *call)) if self._is_final else job)
                noted = _join(cache[number]) and self._is_final
                if self._is_final and not noted:
                    # Of what is written in parts the process says itself that it has it: all of it.
                    waiting.pop()
                    put(job)
            except Exception:
                # It cannot be pickled: else the pool would wait for the end of what never begins.
                cache.pop(number, None)
                raise
            cache[number].is_noted = noted

        self._pool._quick_put = put_whole
        self._pool.process_flush_queues = self._bury
        self._pools_write = self._hub.consolidate_callback
        self._hub.consolidate_callback = self.write
        self._hub.on_tick.discard(self._pools_own)
        self._hub.on_tick.add(self.before_waiting)

    def before_waiting(self) -> None:
        """Write jobs to idle processes; where that leads nowhere, wait as the pool does."""
        waiting = self._pool.outbound_buffer
        while waiting and (idle := self._idle()):
            before = len(waiting)
            for pipe in idle:
                if waiting:
                    self.write([pipe])
            if len(waiting) >= before:
                self._waits = True
                break
        if self._waits:
            self._pools_own()
            self._waits = bool(waiting)

    def write(self, ready: Iterable[int]) -> None:
        """Give a job to each of these pipes' processes that has none.

        A process that dies from here on has begun the job, which is a crash with it, or has not, and the pool
        gives it to another. If the worker dies, the delivery is unacked.
        """
        pool = self._pool
        waiting = pool.outbound_buffer
        for pipe in ready:
            if not waiting:
                # The pool takes its pipes out of the event loop.
                self._pools_write([pipe])
            elif pipe not in pool._busy_workers and pipe not in pool._active_writes:
                self._give(pipe, waiting[0])

    def _give(self, pipe: int, job: Any) -> None:
        pool = self._pool
        process = pool._fileno_to_inq.get(pipe)
        if process is not None and process.pid not in pool._poolctrl:
            # It is dead and has been buried. The pool can read then that it has started, and would write
            # to its pipe for ever (seen after a child died while the worker reconnected).
            pool._all_inqueues.discard(pipe)
            pool._fileno_to_inq.pop(pipe)
            return
        if process is None or job._accepted or not _write_whole(job, pipe):
            job._write_to = None
            self._pools_write([pipe])
        else:
            pool.outbound_buffer.popleft()
            job._write_to = job._scheduled_for = process
            pool._busy_workers.add(pipe)
            pool.write_stats[process.index] += 1
        if _is_noted(job) and job._write_to is not None:
            accept = pool._result_handler.state_handlers[ACK]
            accept(job._job, NOTED, time.monotonic(), job._write_to.pid, None)

    def has_begun(self, job: Any) -> bool:
        """Whether the process that has accepted a job is the pool's, and has really begun with it."""
        is_there: bool = job._worker_pid in self._pool._poolctrl
        return is_there and (not _is_noted(job) or self._is_begun(job))

    def _is_begun(self, job: Any) -> bool:
        process = job._write_to
        return process is not None and self._begun.last(process.index) == int(job._job)

    def _bury(self, process: Any) -> None:
        """Take back what a dead process has not begun; the pool is about to look at its jobs.

        What nobody waits for any more (its time limit has struck) is taken out: its successor would do it.
        """
        pool = self._pool
        # First what it has told: with a job that it had ended before the last one it had begun, too.
        self._pools_flush(process)
        if process._is_alive():
            return
        jobs = [job for job in pool._cache.values() if job._write_to is process]
        if not jobs and (left := unread(process)):
            os.read(process.inq._reader.fileno(), left)
        # A pool that stops gives nothing to anybody any more: it is a crash, and the broker has it again.
        for job in jobs if pool._state == RUN else ():
            if job._accepted and _is_noted(job) and not job.ready() and not self._is_begun(job):
                pool.on_timeout_cancel(job)
                job._accepted, job._worker_pid = False, None

    def _idle(self) -> list[int]:
        pool = self._pool
        return [*(pool._all_inqueues - pool._busy_workers - pool._active_writes)]


def drop_taken_back(pool: Any) -> list[Any]:
    """Take out of a pool, and return, the jobs that nobody has and nobody will be given.

    For a pool that was flushed just now: it drops what it has not written, takes back what dead processes
    have not begun, and then drops what it would write, which that is, but keeps it among its jobs.
    """
    jobs = [job for job in getattr(pool, "_cache", {}).values() if not job._accepted]
    for job in jobs:
        job.discard()
    return jobs


def _is_noted(job: Any) -> bool:
    """Whether the process that gets a job sends no acceptance."""
    return bool(getattr(job, "is_noted", False))


def unread(process: Any) -> int:
    """Return how many bytes a process has not read; none of a pipe that is closed."""
    try:
        answer = fcntl.ioctl(process.inq._reader.fileno(), termios.FIONREAD, bytes(4))
    except OSError:
        return 0
    return int(struct.unpack("i", answer)[0])


def _join(job: Any) -> bool:
    """Make one of a job's length and body, if they can be written in one go; returns whether they can."""
    length, body, size = job._payload
    is_whole: bool = len(length) + size <= ATOMIC
    if is_whole:
        # The pool writes on until the length is written, and is then done with both.
        job._payload = memoryview(bytes(length) + bytes(body)), memoryview(b""), 0
    return is_whole


def _write_whole(job: Any, pipe: int) -> bool:
    """Write a job that is in one piece; false when it is not, or the pipe does not take it."""
    piece, _, rest = job._payload
    if rest:
        return False
    try:
        os.write(pipe, piece)
    except OSError:
        # What this means, the pool sees when it tries again.
        return False
    return True
