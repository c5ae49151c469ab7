"""The misbehaving app in a worker whose pool loses its first job, as Celery's does when children die badly.

What is left behind is what was seen there: the job counts as written to a child that runs nothing, and that
child counts as busy.
"""

from __future__ import annotations

from typing import Any

from celery.concurrency.asynpool import AsynPool

from tests.support.misbehaving import app

__all__ = ["app"]


def _lose_the_first(pool: Any, hub: Any, **options: Any) -> None:
    _create(pool, hub, **options)
    send = pool._quick_put
    lost: list[Any] = []

    def lose(job: Any) -> None:
        send(job)
        if not lost:
            lost.append(pool.outbound_buffer.pop())
            lost[0]._write_to = child = pool._pool[0]
            pool._busy_workers.add(child.inqW_fd)

    pool._quick_put = lose


_create = AsynPool._create_write_handlers
AsynPool._create_write_handlers = _lose_the_first
