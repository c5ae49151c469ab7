"""An app whose one task fails once and asks for its next attempt after a given time; run by real workers.

Each start of a body is a JSON line in a file of its process, in the folder ``TEST_STARTS``: number, attempt,
time, the queue whose consumer got the delivery, and the message as it came.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from celery import Celery
from celery.signals import task_received

import unlost
from tests.support.traces import leave
from unlost.chaos import Workload

app = Celery("retrying")
runtime = unlost.install(app, topology=os.environ["TEST_TOPOLOGY"])


def tell_queue(request: Any, sender: Any, **_: Any) -> None:
    """Have the body know whose consumer got the delivery; the parent alone can tell."""
    tag = request.delivery_info.get("consumer_tag") or request._message.delivery_info["consumer_tag"]
    tags = sender.task_consumer._active_tags
    request._request_dict["test_queue"] = next((name for name, each in tags.items() if each == tag), "?")


task_received.connect(tell_queue, weak=False)


@app.task(base=unlost.ReliableTask, bind=True, name="r.later", retry=unlost.RetryPolicy())
def later(self: Any, number: int, after_ms: int, together_at_ms: int | None = None) -> None:
    """Fail once; the next attempt is ``after_ms`` later, or some whole seconds, at about a given moment."""
    now = time.time() * 1000
    if self.attempt == 1 and together_at_ms is not None:
        after_ms = max(1, round((together_at_ms - now) / 1000)) * 1000
    note(self.request, number, self.attempt, now, after_ms)
    if self.attempt == 1:
        raise self.retry_later(after=timedelta(milliseconds=after_ms))


def note(request: Any, number: int, attempt: int, now: float, after_ms: int) -> None:
    """Leave a trace of a start."""
    message = dict(request.properties)
    headers = message.pop("application_headers")
    leave(
        os.environ["TEST_STARTS"],
        number=number,
        attempt=attempt,
        at_ms=now,
        after_ms=after_ms,
        queue=request.test_queue,
        headers=headers,
        properties=message,
    )


@dataclass(frozen=True, kw_only=True)
class Retries(Workload):
    """The chaos kit's view of the app; the run publishes and keeps its records itself."""

    def publish(self, number: int) -> None:
        """Nothing is published by the kit."""
        raise NotImplementedError

    def value_of(self, *_: Any) -> None:
        """Nothing is promised here."""

    def effects(self) -> Iterable[tuple[str, int]]:
        """No effect is read."""
        return ()
