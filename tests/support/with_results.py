"""The misbehaving app with a result backend (``CELERY_RESULT_BACKEND``) that is given up soon."""

from __future__ import annotations

import time
from typing import Any

from celery.exceptions import Reject
from sqlalchemy import insert

from tests.support.going_wrong import go_wrong
from tests.support.misbehaving import app, effects, leaves_trace, note, runtime, task
from unlost.errors import Permanent

__all__ = ["app", "leaves_trace", "note", "runtime"]

SOON = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}
app.conf.update(
    result_backend_transport_options={"retry_policy": SOON},
    redis_socket_timeout=1,
    redis_socket_connect_timeout=1,
    redis_retry_on_timeout=False,
)


@task(name="t.keeps", ignore_result=False)
def keeps(self: Any, label: str) -> str:
    """Have an effect, and keep its result in the backend too."""
    note(label)
    with self.unit_of_work() as work:
        work.connection.execute(insert(effects).values(label=label))
        work.result = f"{label}-done"
    return f"{label}-done"


@task(name="t.keeps_failure", ignore_result=False)
def keeps_failure(self: Any, label: str) -> None:
    """Fail for good."""
    note(label)
    raise Permanent(f"{label} can never succeed")


@task(name="t.member", ignore_result=False, time_limit=2)
def member(self: Any, label: str, what: str = "") -> str:
    """Be one of a chord, and go wrong in the way named, every time."""
    note(label)
    match what:
        case "hang":
            time.sleep(60)
        case "permanent":
            raise Permanent(label)
        case "reject":
            raise Reject(label, requeue=False)
        case "invalid":
            raise ValueError(label)
        case "":
            pass
        case _:
            go_wrong(what)
    return label


@task(name="t.gathers", ignore_result=False)
def gathers(self: Any, results: list[str], label: str) -> None:
    """Be the body of a chord."""
    note(f"{label}-{'+'.join(sorted(results))}")


@app.task(name="t.errback")
def errback(request: Any, exc: Any, traceback: Any) -> None:
    """Be told of a failure."""
    note(f"errback-{request.id}")
