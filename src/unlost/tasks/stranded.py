"""Finds deliveries that Celery's prefork pool has lost, so that they can go back to the broker.

Celery 5.7 can write a job into the pipe of a child that is already dead, when the child dies while the
worker reconnects and before the parent has read that it is up. The job is then taken for one that a live
child is about to accept, and the delivery stays unacked for ever (seen: five minutes after the last fault a
message was still with a worker whose children were all idle). Nothing in Celery tells; what can be seen is
a job that no process has accepted although the one it was written to runs nothing else, or one whose process
is not among the pool's, or has not begun it: it is stopped, or hangs, or the job never reached it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from typing import Any

#: How long an idle child may take to accept what was written to it; milliseconds are usual. Too short does
#: no harm: the delivery comes again, and the ledger lets one of the two run.
PATIENCE = timedelta(seconds=10)

CHECK_EVERY = timedelta(seconds=5)


class Watch:
    """Remembers since when each job waits for a process that is idle.

    Args:
        patience: How long that may take.
    """

    def __init__(self, patience: timedelta = PATIENCE) -> None:
        self._patience = patience
        self._since: dict[int, float] = {}

    def stranded(
        self,
        jobs: Collection[Any],
        has_begun: Callable[[Any], bool],
        unwritten: Collection[Any] = (),
        now: float | None = None,
    ) -> list[Any]:
        """Return the jobs that have waited for too long.

        Args:
            jobs: What the pool has not finished: billiard's ``ApplyResult``\\ s.
            has_begun: Whether the process that has accepted a job is there and has really begun it.
            unwritten: Those of them that the pool will write to the next process that can take one, however
                long that takes to start: it has not lost them.
            now: Seconds of the monotonic clock.
        """
        now = time.monotonic() if now is None else now
        waiting = {job._job: job for job in _waiting_for_nobody(jobs, has_begun)}
        for job in unwritten:
            waiting.pop(job._job, None)
        self._since = {number: self._since.get(number, now) for number in waiting}
        patience = self._patience.total_seconds()
        return [job for number, job in waiting.items() if now - self._since[number] >= patience]


def _waiting_for_nobody(jobs: Collection[Any], has_begun: Callable[[Any], bool]) -> Iterator[Any]:
    """Yield jobs whose process is gone or deaf, or that none accepts while the one that should is idle."""
    open_jobs = [job for job in jobs if not job.ready()]
    running = {job._worker_pid for job in open_jobs if job._accepted}
    for job in open_jobs:
        if job._accepted:
            if not has_begun(job):
                yield job
            continue
        written_to = job._write_to or job._scheduled_for
        if written_to.pid not in running if written_to is not None else not running:
            yield job
