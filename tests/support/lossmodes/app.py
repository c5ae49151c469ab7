"""One set of tasks for both sides: the same bodies, on plain Celery or with unlost installed.

A body's run leaves a row in ``runs``, its effect a row in ``effects``, neither with a unique constraint:
what happens twice is there twice. Under unlost the effect is written in the unit of work, on plain Celery
in a transaction of its own.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from celery import Celery
from celery.exceptions import Reject
from kombu import Exchange, Queue
from sqlalchemy import Column, Engine, Integer, MetaData, NullPool, String, Table, create_engine, insert

import unlost
from tests.support.going_wrong import go_wrong
from unlost import config
from unlost.testing.waiting import wait_until

#: The environment variable that holds the plain side's configuration, as JSON.
PLAIN = "TEST_PLAIN"
#: The environment variable that holds settings for both sides, as JSON.
BOTH = "TEST_BOTH"

WORK, OTHER, HIGH = QUEUES = ("t.work", "t.other", "high.t.work")
EXCHANGE = "t"
DEAD_LETTERS = "t.dead"

metadata = MetaData()
runs = Table("runs", metadata, Column("id", Integer, primary_key=True), Column("label", String(200)))
effects = Table("effects", metadata, Column("id", Integer, primary_key=True), Column("label", String(200)))


class Traces:
    """Runs and effects of the bodies of one app."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        with engine.begin() as connection:
            metadata.create_all(connection)

    def note(self, label: str) -> int:
        """Leave a trace of a run and return how many there are of this label."""
        with self.engine.begin() as connection:
            connection.execute(insert(runs).values(label=label))
        return self.count(label)

    def count(self, label: str) -> int:
        """Return how many runs of this label there are."""
        with self.engine.connect() as connection:
            return len(connection.execute(runs.select().where(runs.c.label == label)).all())

    def wait_for(self, label: str) -> None:
        """Wait until somebody leaves this trace."""
        wait_until(lambda: self.count(label), timedelta(seconds=60), f"{label!r} is noted")

    @contextmanager
    def effect(self, task: Any, label: str) -> Iterator[None]:
        """Have an effect; what raises inside undoes it."""
        if isinstance(task, unlost.ReliableTask):
            with task.unit_of_work() as work:
                work.connection.execute(insert(effects).values(label=label))
                work.result = f"{label}-done"
                yield
            return
        with self.engine.begin() as connection:
            connection.execute(insert(effects).values(label=label))
            yield


def make_app(environ: Mapping[str, str]) -> Celery:
    """Make the app of one side; which one, the environment says."""
    app = Celery("t", broker=environ["CELERY_BROKER_URL"], set_as_current=False)
    app.conf.update(json.loads(environ.get(BOTH, "{}")))
    if PLAIN in environ:
        _configure_plain(app, json.loads(environ[PLAIN]))
        engine = create_engine(environ["UNLOST_STORE"], poolclass=NullPool, connect_args={"timeout": 30})
        options: dict[str, Any] = {}
    else:
        settings = config.load(None, environ)
        engine = unlost.install(app, topology=environ["TEST_TOPOLOGY"], settings=settings).engine
        options = {"base": unlost.ReliableTask}
    _register(app, Traces(engine), options)
    for name in environ.get("TEST_WITHOUT_TASKS", "").split():
        del app.tasks[name]
    return app


def _configure_plain(app: Celery, plain: Mapping[str, Any]) -> None:
    """Configure plain Celery: its defaults, and what the scenario's hardening adds."""
    app.conf.task_default_queue = WORK
    if plain["declares"]:
        exchange = Exchange(EXCHANGE, plain["exchange_type"])
        arguments = plain["arguments"]
        app.conf.task_queues = [
            Queue(name, exchange, routing_key=name, queue_arguments=arguments) for name in plain["queues"]
        ]
        app.conf.task_default_exchange = EXCHANGE
        app.conf.task_default_exchange_type = plain["exchange_type"]
        app.conf.task_default_routing_key = WORK
    app.conf.update(plain["conf"])


def _register(app: Celery, traces: Traces, common: Mapping[str, Any]) -> None:
    note, effect = traces.note, traces.effect

    def task(name: str, **options: Any) -> Any:
        # Or every other app of this process would get it too.
        return app.task(bind=True, name=name, shared=False, **common, **options)

    @task("t.effect")
    def has_effect(self: Any, label: str) -> str:
        note(label)
        with effect(self, label):
            pass
        return f"{label}-done"

    @task("t.kept", ignore_result=False)
    def keeps_result(self: Any, label: str) -> str:
        note(label)
        with effect(self, label):
            pass
        return f"{label}-done"

    @task("t.receives")
    def receives(self: Any, result: Any) -> None:
        note(f"received {result}")
        with effect(self, f"received {result}"):
            pass

    @task("t.crashes")
    def crashes(self: Any, label: str, what: str, times: int = 1) -> None:
        count = note(label)
        with effect(self, label):
            if count <= times:
                go_wrong(what)

    @task("t.commits_then")
    def commits_then(self: Any, label: str, what: str) -> str:
        count = note(label)
        with effect(self, label):
            pass
        if count == 1:
            go_wrong(what)
        return f"{label}-done"

    def kill_parent(_self: Any, _status: str, _result: Any, _id: str, args: Any, *_more: Any) -> None:
        if traces.note(f"{args[0]}-returned") == 1:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)

    @task("t.kills_its_worker_afterwards", after_return=kill_parent)
    def kills_afterwards(self: Any, label: str) -> str:
        note(label)
        with effect(self, label):
            pass
        return f"{label}-done"

    @task("t.fails")
    def fails(self: Any, label: str) -> None:
        note(label)
        raise RuntimeError(f"{label} failed")

    @task("t.retries", max_retries=3)
    def retries(self: Any, label: str, countdown: float) -> None:
        if note(label) == 1:
            raise self.retry(countdown=countdown, exc=RuntimeError("once"))
        with effect(self, label):
            pass

    @task("t.retries_when_told", max_retries=3)
    def retries_when_told(self: Any, label: str) -> None:
        if note(label) == 1:
            traces.wait_for("go")
            raise self.retry(countdown=1, exc=RuntimeError("once"))
        with effect(self, label):
            pass

    @task("t.rejects")
    def rejects(self: Any, label: str) -> None:
        if note(label) == 1:
            raise Reject("not now", requeue=True)
        with effect(self, label):
            pass

    @task("t.waits")
    def waits(self: Any, label: str, until: str = "release") -> str:
        note(label)
        traces.wait_for(until)
        with effect(self, label):
            pass
        return f"{label}-done"

    @task("t.counts", max_retries=3)
    def counts(self: Any, label: str) -> None:
        count = (self.request.headers or {}).get("x-delivery-count", 0)
        if note(label) == 1:
            raise self.retry(countdown=1, exc=RuntimeError("once"))
        with effect(self, f"{label} at {count}"):
            pass

    @task("t.correlates")
    def correlates(self: Any, label: str) -> None:
        headers = self.request.headers or {}
        note(label)
        with effect(
            self, f"{label} of {headers.get('correlation') or headers.get('x-unlost-correlation-id')}"
        ):
            pass

    @task("t.too_slow", time_limit=1)
    def too_slow(self: Any, label: str) -> None:
        note(label)
        time.sleep(60)

    @task("t.gathers", ignore_result=False)
    def gathers(self: Any, results: list[str]) -> None:
        note("gathered")
        with effect(self, "gathered"):
            pass
