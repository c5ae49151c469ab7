"""An app without a store; run by real workers in the tests. Each run of a body adds a line to a file."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from celery import Celery
from tenacity import stop_after_delay, wait_fixed

import unlost
from unlost.idempotency.none import NO_STORE

app = Celery("storeless")
unlost.install(app, topology=os.environ["TEST_TOPOLOGY"], store=NO_STORE)


def task(**options: Any) -> Any:
    """Return a decorator for a bound reliable task on the work queue."""
    return app.task(base=unlost.ReliableTask, bind=True, queue="t.work", **options)


def note(label: str) -> int:
    """Add a line for a run, and return how many there are of this label."""
    path = Path(os.environ["TEST_TRACES"])
    with path.open("a") as traces:
        traces.write(label + "\n")
    return path.read_text().splitlines().count(label)


@task(name="t.works")
def works(self: Any, label: str) -> None:
    """Leave a trace."""
    note(label)


@task(name="t.dies_once")
def dies_once(self: Any, label: str) -> None:
    """Take the process down the first time."""
    if note(label) == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@task(name="t.dies")
def dies(self: Any, label: str) -> None:
    """Take the process down, every time."""
    note(label)
    os.kill(os.getpid(), signal.SIGKILL)


@task(name="t.fails", retry=unlost.RetryPolicy(wait=wait_fixed(1), stop=stop_after_delay(2.5)))
def fails(self: Any, label: str) -> None:
    """Fail, every time."""
    note(label)
    raise RuntimeError("not today")


@task(name="t.has_a_unit_of_work")
def has_a_unit_of_work(self: Any, label: str) -> None:
    """Ask for what only a store can give."""
    note(label)
    with self.unit_of_work():
        pass
