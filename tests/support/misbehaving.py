"""An app whose tasks do all that tasks do wrong; run by real workers in the tests.

Broker, store and topology come from the environment, as for any application. Each run of a body leaves a
row in ``runs`` and each effect a row in ``effects``, in the store's own database.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from celery import Celery
from pydantic import BaseModel
from sqlalchemy import Column, Integer, MetaData, String, Table, insert
from tenacity import stop_after_attempt, wait_fixed

import unlost
from unlost.errors import Permanent

metadata = MetaData()
runs = Table("runs", metadata, Column("id", Integer, primary_key=True), Column("label", String(64)))
effects = Table("effects", metadata, Column("id", Integer, primary_key=True), Column("label", String(64)))

app = Celery("misbehaving")
runtime = unlost.install(app, topology=os.environ["TEST_TOPOLOGY"])
engine = runtime.ledger.engine
with engine.begin() as _connection:
    metadata.create_all(_connection)

QUEUE = "t.work"
TWICE = unlost.RetryPolicy(wait=wait_fixed(1), stop=stop_after_attempt(2))


def note(label: str) -> int:
    """Leave a trace of a run and return how many there are of this label."""
    with engine.begin() as connection:
        connection.execute(insert(runs).values(label=label))
        return len(connection.execute(runs.select().where(runs.c.label == label)).all())


def task(**options: Any) -> Any:
    """Return a decorator for a bound reliable task on the work queue."""
    return app.task(base=unlost.ReliableTask, bind=True, **{"queue": QUEUE, **options})


@task(name="t.effect")
def effect(self: Any, label: str) -> str:
    """Have one effect, and return what links receive."""
    note(label)
    with self.unit_of_work() as work:
        work.connection.execute(insert(effects).values(label=label))
        work.result = f"{label}-done"
    return f"{label}-done"


@task(name="t.commits_then")
def commits_then(self: Any, label: str, what: str) -> None:
    """Commit an effect, and then go wrong the first time."""
    count = note(label)
    with self.unit_of_work() as work:
        work.connection.execute(insert(effects).values(label=label))
        work.result = f"{label}-done"
    if count == 1:
        go_wrong(what)


@task(name="t.before_commit")
def before_commit(self: Any, label: str, what: str, times: int = 1) -> None:
    """Go wrong before the commit, the first ``times`` runs."""
    count = note(label)
    with self.unit_of_work() as work:
        work.connection.execute(insert(effects).values(label=label))
        if count <= times:
            go_wrong(what)


@task(name="t.fails", retry=TWICE)
def fails(self: Any, label: str) -> None:
    """Fail at every attempt."""
    note(label)
    raise RuntimeError(f"{label} failed at attempt {self.attempt}")


@task(name="t.permanent", retry=TWICE)
def permanent(self: Any, label: str) -> None:
    """Fail in a way that no retry mends."""
    note(label)
    raise Permanent(f"{label} can never succeed")


@task(name="t.recovers", retry=TWICE)
def recovers(self: Any, label: str) -> None:
    """Fail once."""
    if note(label) == 1:
        raise RuntimeError("once")


@task(name="t.celery_retry", max_retries=1)
def celery_retry(self: Any, label: str) -> None:
    """Retry in Celery's own way."""
    if note(label) == 1:
        raise self.retry(countdown=1, exc=RuntimeError("once"))


@task(name="t.too_slow", time_limit=1)
def too_slow(self: Any, label: str) -> None:
    """Run into the hard time limit, every time."""
    note(label)
    time.sleep(60)


class Parcel(BaseModel):
    """A payload."""

    number: int


@task(name="t.parcel", payload=Parcel)
def parcel(self: Any, parcel: Parcel) -> None:
    """Take a model."""
    note(f"parcel-{parcel.number}-{type(parcel).__name__}")


@task(name="t.publishes")
def publishes(self: Any, label: str) -> None:
    """Publish another task from a task."""
    note(f"{label}-correlation-{self.request.headers['x-unlost-correlation-id']}")
    reports.delay(label)


@task(name="t.reports")
def reports(self: Any, label: str) -> None:
    """Say what correlation and cause the message came with."""
    headers = self.request.headers
    note(f"{label}-child-{headers['x-unlost-correlation-id']}")


@task(name="t.reports_result")
def reports_result(self: Any, result: Any) -> None:
    """Say what the link received."""
    note(f"received-{result}")


@task(name="t.calls")
def calls(self: Any, label: str) -> None:
    """Call the body of another task directly."""
    recovers_body = parcel(number=7)
    note(f"{label}-{recovers_body}")


def go_wrong(what: str) -> None:
    """End this process, or raise, in the way named."""
    match what:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60)
        case "exit":
            sys.exit(3)
        case "_exit":
            os._exit(3)
        case "memory":
            raise MemoryError
        case "raise":
            raise RuntimeError("after the fact")
        case "kill-parent":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
