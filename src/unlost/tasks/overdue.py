"""Recognises a consumer timeout, which the broker reports as something else.

RabbitMQ takes back a delivery that a worker has held for too long. Before 4.3 it closes the channel with
PRECONDITION_FAILED, from 4.3 on it cancels the consumer, as it does when a queue is deleted or moves. Either
way the worker reconnects and all that it holds is delivered again; what runs keeps its lease, so that the
copies wait.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from amqp.exceptions import ConsumerCancelled, PreconditionFailed

from unlost.topology.model import WorkQueue

#: The broker looks at its own clock, and does not look all the time.
TOLERANCE = timedelta(seconds=1)


def overdue(
    exc: BaseException, requests: Iterable[Any], queues: Mapping[str, WorkQueue], now: float | None = None
) -> Iterator[str]:
    """Yield a sentence for each request that has outlasted its queue's consumer timeout.

    Args:
        exc: What ended the connection; nothing else than a consumer timeout's two errors counts.
        requests: What the worker holds.
        queues: The work queues, by name.
        now: Seconds of the monotonic clock.
    """
    if not isinstance(exc, ConsumerCancelled | PreconditionFailed):
        return
    now = time.monotonic() if now is None else now
    for request in requests:
        held = timedelta(seconds=round(now - request.received, 1))
        timeout = queues[request.queue].consumer_timeout if request.queue in queues else None
        if timeout is not None and held + TOLERANCE >= timeout:
            yield (
                f"{request.humaninfo()} has been with this worker for {held}, and the consumer timeout of "
                f"{request.queue!r} is {timeout}: the broker has taken it back. It goes on under its lease, "
                "and its copy waits for it. Give the task a lower time_limit, or raise the timeout"
            )
