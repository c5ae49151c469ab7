"""An app whose tasks do all that tasks do wrong; run by real workers in the tests.

Broker, store and topology come from the environment, as for any application. Each run of a body leaves a
row in ``runs`` and each effect a row in ``effects``, in the store's own database.
"""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import timedelta
from typing import Any

from celery import Celery
from celery.exceptions import Ignore, Reject
from kombu.utils.json import register_type
from pydantic import BaseModel
from sqlalchemy import Column, Integer, MetaData, String, Table, insert
from tenacity import stop_after_attempt, wait_fixed

import unlost
from tests.support.going_wrong import go_wrong
from unlost.errors import Permanent
from unlost.testing.waiting import wait_until


class Stuck:
    """An argument of a JSON type of the application's own, which cannot be pickled."""

    def __reduce__(self) -> Any:
        """Refuse."""
        raise TypeError("it cannot be pickled")


register_type(Stuck, "stuck", lambda _: 0, lambda _: Stuck())

metadata = MetaData()
runs = Table("runs", metadata, Column("id", Integer, primary_key=True), Column("label", String(64)))
effects = Table("effects", metadata, Column("id", Integer, primary_key=True), Column("label", String(64)))

app = Celery("misbehaving")
if "TEST_FAILOVER" in os.environ:
    app.conf.broker_failover_strategy = os.environ["TEST_FAILOVER"]
runtime = unlost.install(app, topology=os.environ["TEST_TOPOLOGY"])
if "TEST_CONFIG" in os.environ:
    app.config_from_object(json.loads(os.environ["TEST_CONFIG"]))
engine = runtime.engine
with engine.begin() as _connection:
    metadata.create_all(_connection)

QUEUE = "t.work"
THRICE = unlost.RetryPolicy(wait=wait_fixed(1), stop=stop_after_attempt(3))
TWICE = unlost.RetryPolicy(wait=wait_fixed(1), stop=stop_after_attempt(2))


def note(label: str) -> int:
    """Leave a trace of a run and return how many there are of this label."""
    with engine.begin() as connection:
        connection.execute(insert(runs).values(label=label))
    return count(label)


def count(label: str) -> int:
    """Return how many runs of this label there are."""
    with engine.connect() as connection:
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


@task(name="t.works")
def works(self: Any, label: str, seconds: float) -> None:
    """Take a while, and have one effect."""
    time.sleep(seconds)
    with self.unit_of_work() as work:
        work.connection.execute(insert(effects).values(label=label))


@task(name="t.lands")
def lands(self: Any, order: int) -> None:
    """Have one effect and leave no other trace: for tests of many thousands."""
    with self.unit_of_work() as work:
        work.connection.execute(insert(effects).values(label=str(order)))


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


@task(name="t.lost_then_permanent")
def lost_then_permanent(self: Any, label: str) -> None:
    """Take the worker along the first time, and fail for good the second."""
    if note(label) == 1:
        go_wrong("kill-parent")
    raise Permanent(f"{label} can never succeed")


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


@task(name="t.tries_in_process", retry=THRICE)
def tries_in_process(self: Any, label: str) -> None:
    """Fail at every attempt, of which it makes two in one delivery."""
    for attempt in self.retrying(stop=stop_after_attempt(2)):
        with attempt:
            note(f"{label}-{self.attempt}-left-{self.attempts_left}")
            raise RuntimeError("again")


@task(name="t.postponed", retry=THRICE)
def postponed(self: Any, label: str, seconds: int = 1) -> None:
    """Ask once to be run later."""
    if note(label) == 1:
        raise self.retry_later("not open yet", after=timedelta(seconds=seconds))


@task(name="t.celery_autoretry", autoretry_for=(KeyError,), max_retries=1, retry_backoff=1)
def celery_autoretry(self: Any, label: str) -> None:
    """Fail at every attempt, retried as Celery's own options say."""
    note(label)
    raise KeyError(label)


@task(name="t.too_slow", time_limit=1)
def too_slow(self: Any, label: str) -> None:
    """Run into the hard time limit, every time."""
    note(label)
    time.sleep(60)


@task(name="t.soft", soft_time_limit=1, retry=TWICE)
def soft(self: Any, label: str) -> None:
    """Run into the soft time limit, every time."""
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


@task(name="t.measures")
def measures(self: Any, result: Any) -> None:
    """Say how long the result is that the link received."""
    note(f"measured-{len(result)}")


@task(name="t.calls")
def calls(self: Any, label: str) -> None:
    """Call the body of another task directly."""
    recovers_body = parcel(number=7)
    note(f"{label}-{recovers_body}")


@task(name="t.stamps_time")
def stamps_time(self: Any, label: str) -> None:
    """Say when it ran: epoch milliseconds."""
    note(f"{label}-{time.time_ns() // 1_000_000}")


@task(name="t.drops_expired", on_expired="drop")
def drops_expired(self: Any, label: str) -> None:
    """Never run: it is only published when it has expired."""
    note(label)


@task(name="t.comes_too_late", retry=THRICE)
def comes_too_late(self: Any, label: str) -> None:
    """Ask to be run again after six seconds."""
    note(label)
    raise self.retry_later(after=timedelta(seconds=6))


@task(name="t.waits")
def waits(self: Any, label: str) -> None:
    """Keep a slot until somebody leaves the trace ``release``."""
    note(label)
    wait_until(lambda: count("release"), timedelta(seconds=60), "it is released")


@task(name="t.waits_then_commits")
def waits_then_commits(self: Any, label: str) -> None:
    """Keep a slot until somebody leaves the trace ``release``, and then have an effect."""
    note(label)
    wait_until(lambda: count("release"), timedelta(seconds=60), "it is released")
    with self.unit_of_work() as work:
        work.connection.execute(insert(effects).values(label=label))


@task(name="t.naps")
def naps(self: Any, label: str, seconds: float) -> None:
    """Take some time, and then have an effect."""
    note(label)
    time.sleep(seconds)
    with self.unit_of_work() as work:
        work.connection.execute(insert(effects).values(label=label))


@task(name="t.holds_work")
def holds_work(self: Any, label: str) -> None:
    """Have an effect whose transaction stays open for a minute."""
    note(label)
    with self.unit_of_work() as work:
        work.connection.execute(insert(effects).values(label=label))
        time.sleep(60)


@task(name="t.outlives_its_end")
def outlives_its_end(self: Any, label: str) -> None:
    """Ignore the signal that shall end it, and try to commit once the trace ``release`` is there."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(label)
    wait_until(lambda: count("release"), timedelta(seconds=60), "it is released")
    with self.unit_of_work() as work:
        work.connection.execute(insert(effects).values(label=label))


def ignored_at_start(self: Any, _id: str, _args: Any, _kwargs: Any) -> None:
    """Refuse to start, in Celery's way of saying that nothing shall be recorded."""
    note("before-start")
    raise Ignore("not today")


def broken_at_start(self: Any, _id: str, _args: Any, _kwargs: Any) -> None:
    """Fail before the body."""
    note("before-start")
    raise RuntimeError("before the body")


@task(name="t.ignored_at_start", retry=TWICE, before_start=ignored_at_start)
def never_started(self: Any, label: str) -> None:
    """Never run: the hook ahead of it raises Ignore."""
    note(label)


@task(name="t.broken_at_start", retry=TWICE, before_start=broken_at_start)
def never_reached(self: Any, label: str) -> None:
    """Never run: the hook ahead of it fails."""
    note(label)


@task(name="t.replaces")
def replaces(self: Any, label: str) -> None:
    """Put another task in this one's place."""
    note(label)
    raise self.replace(effect.si(f"{label}-replacement"))


@task(name="t.replaces_itself")
def replaces_itself(self: Any, label: str) -> str:
    """Put the same task in this one's place, once."""
    if note(label) == 1:
        raise self.replace(self.si(label))
    return "second"


@task(name="t.retries_late", retry=unlost.RetryPolicy(wait=wait_fixed(60), stop=stop_after_attempt(2)))
def retries_late(self: Any, label: str) -> None:
    """Fail, and be tried again in a minute."""
    note(label)
    raise RuntimeError("later")


@task(name="t.ignores")
def ignores(self: Any, label: str) -> None:
    """End without a state, a result or links."""
    note(label)
    raise Ignore("no longer wanted")


def broken_hook(self: Any, *_details: Any) -> None:
    """Fail in a hook."""
    note("hook")
    raise RuntimeError("the hook is broken")


def rejecting_hook(self: Any, *_details: Any) -> None:
    """Reject, in a hook, what is done."""
    note("hook")
    raise Reject("no more of this", requeue=False)


@task(name="t.fails_twice_over", on_failure=broken_hook)
def fails_twice_over(self: Any, label: str) -> None:
    """Fail, and then fail in the hook."""
    note(label)
    raise Permanent(f"{label} can never succeed")


@task(name="t.rejected_afterwards", on_success=rejecting_hook)
def rejected_afterwards(self: Any, label: str) -> None:
    """Succeed, and be rejected by the hook."""
    note(label)


@app.task(name="t.plain", bind=True, max_retries=3)
def plain(self: Any, label: str) -> None:
    """Retry once, as a task of plain Celery."""
    if note(label) == 1:
        raise self.retry(countdown=1, exc=RuntimeError("once"))


@task(name="t.spends_its_own_budget", retry=TWICE)
def spends_its_own_budget(self: Any, label: str) -> None:
    """Ask for a retry that its own budget, smaller than the policy's, does not have."""
    note(label)
    raise self.retry(countdown=1, max_retries=0, exc=RuntimeError("its own budget"))


@task(name="t.returns_model")
def returns_model(self: Any, number: int) -> Parcel:
    """Return a model."""
    note("returned")
    return Parcel(number=number)


@task(name="t.returns_object", retry=TWICE)
def returns_object(self: Any, label: str) -> object:
    """Return what is no JSON."""
    note(label)
    return object()


@task(name="t.records_object", retry=TWICE)
def records_object(self: Any, label: str) -> None:
    """Record as its result what is no JSON."""
    note(label)
    with self.unit_of_work() as work:
        work.connection.execute(insert(effects).values(label=label))
        work.result = object()


@task(name="t.commits_and_returns_object")
def commits_and_returns_object(self: Any, label: str) -> object:
    """Commit, and then return what is no JSON."""
    note(label)
    with self.unit_of_work() as work:
        work.connection.execute(insert(effects).values(label=label))
        work.result = f"{label}-done"
    return object()


@task(name="t.leaves_trace")
def leaves_trace(self: Any, label: str) -> str:
    """Leave a trace and pass its label on."""
    note(label)
    return label


@task(name="t.publishes_in_work")
def publishes_in_work(self: Any, label: str, what: str) -> None:
    """Publish a task in the transaction of an effect, and go wrong before or after its commit."""
    count = note(label)
    with self.unit_of_work() as work:
        work.connection.execute(insert(effects).values(label=label))
        work.publish(effect, f"{label}-{count}")
        if what == "before" and count == 1:
            go_wrong("kill")
    if what == "after" and count == 1:
        go_wrong("kill")


for _name in os.environ.get("TEST_WITHOUT_TASKS", "").split():
    del app.tasks[_name]
