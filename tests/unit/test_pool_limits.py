"""Time limits that a pool ignores are refused; deliveries held for too long are recognised."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from amqp.exceptions import ConsumerCancelled, PreconditionFailed
from celery import Celery
from celery.concurrency import get_implementation

import unlost
from tests.support.apps import OTHER, WORK, close, shop
from unlost.errors import ConfigurationError
from unlost.tasks.overdue import overdue
from unlost.tasks.pools import refuse_limits
from unlost.topology.model import WorkQueue

NO_OPTIONS = SimpleNamespace(time_limit=None, soft_time_limit=None)


@pytest.fixture
def app() -> Iterator[Celery]:
    """An app with a task of each limit on one queue."""
    app = Celery("shop", broker="amqp://nobody@127.0.0.1:1//", set_as_current=False)
    unlost.install(app, topology=shop(), store="memory://")

    @app.task(shared=False, base=unlost.ReliableTask, name="shop.hard", queue=WORK, time_limit=7)
    def hard() -> None:
        """Do nothing."""

    @app.task(shared=False, base=unlost.ReliableTask, name="shop.soft", queue=OTHER, soft_time_limit=5)
    def soft() -> None:
        """Do nothing."""

    yield app
    close(app)


def refuse(app: Celery, pool: str, *queues: str, options: Any = NO_OPTIONS) -> None:
    """Check a pool of Celery's, without starting it."""
    made = object.__new__(get_implementation(pool))
    refuse_limits(made, options, app.tasks.values(), queues)


@pytest.mark.parametrize(
    ("pool", "queue"), [("threads", WORK), ("threads", OTHER), ("solo", WORK), ("gevent", OTHER)]
)
def test_an_ignored_limit_is_refused(app: Celery, pool: str, queue: str) -> None:
    """The error names task, limit, pool and a pool that would do."""
    with pytest.raises(ConfigurationError, match=rf"task shop\.\w+: .*time_limit=\d.*{pool}.*--pool=prefork"):
        refuse(app, pool, queue)


@pytest.mark.parametrize(("pool", "queue"), [("prefork", WORK), ("prefork", OTHER), ("gevent", WORK)])
def test_a_limit_that_is_kept_is_not_refused(app: Celery, pool: str, queue: str) -> None:
    """Prefork keeps both, gevent the hard one."""
    refuse(app, pool, queue)


def test_a_queue_that_is_not_consumed_does_not_matter(app: Celery) -> None:
    """Threads may serve a queue whose tasks have no limit."""
    refuse(app, "threads", "shop.third")


def test_a_limit_in_the_workers_options_is_refused_too(app: Celery) -> None:
    """``--time-limit`` is for all tasks."""
    options = SimpleNamespace(time_limit=30, soft_time_limit=None)
    with pytest.raises(ConfigurationError, match="the worker's options: time_limit=30"):
        refuse(app, "threads", options=options)


QUEUES = {"q": WorkQueue(consumer_timeout=timedelta(seconds=60)), "free": WorkQueue(consumer_timeout=None)}
TIMED_OUT = PreconditionFailed("PRECONDITION_FAILED - delivery acknowledgement timed out", (0, 0))


def request(queue: str | None, received: float) -> Any:
    """Return what a worker holds."""
    return SimpleNamespace(queue=queue, received=received, humaninfo=lambda: "t[m]")


@pytest.mark.parametrize("exc", [TIMED_OUT, ConsumerCancelled("tag", (60, 30))])
def test_a_delivery_held_for_too_long_is_recognised(exc: Exception) -> None:
    """The sentence names the task, the queue and both times."""
    [sentence] = overdue(exc, [request("q", 100.0), request("q", 150.0)], QUEUES, now=160.5)
    assert "t[m] has been with this worker for 0:01:00.5" in sentence
    assert "the consumer timeout of 'q' is 0:01:00" in sentence


@pytest.mark.parametrize(
    ("exc", "held"),
    [
        (ConnectionResetError(), request("q", 0.0)),
        (TIMED_OUT, request("q", 150.0)),
        (TIMED_OUT, request("free", 0.0)),
        (TIMED_OUT, request(None, 0.0)),
    ],
)
def test_nothing_else_is_taken_for_it(exc: Exception, held: Any) -> None:
    """Another error, a young delivery, a queue without a timeout, one that is not ours."""
    assert list(overdue(exc, [held], QUEUES, now=160.0)) == []
