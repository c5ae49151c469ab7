"""Nothing of Celery's publishing is lost on the way through the confirming publisher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import amqp
import pytest
from celery import Celery
from celery.canvas import Signature, StampingVisitor
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError

import unlost
from tests.support.apps import WORK, close, declare, reliable_app, shop
from tests.support.publishing import PATIENCE, declare_queue, drained, elapsed
from unlost.testing.brokers import Vhost
from unlost.testing.waiting import wait_until

pytestmark = pytest.mark.one_broker


class Note(unlost.ReliableTask):
    """A task that is only ever published here."""

    name = "shop.note"
    queue = WORK

    def run(self, *values: Any) -> None:
        """Never run."""


@pytest.fixture
def app(vhost: Vhost, tmp_path: Path) -> Iterator[Celery]:
    """Make an installed app on a vhost that has its topology."""
    declare(vhost, shop())
    made = reliable_app(vhost, tmp_path, shop())
    yield made
    close(made)


def embed_of(found: amqp.Message) -> Any:
    """Return callbacks, errbacks, chain and chord."""
    return json.loads(found.body)[2]


def unpacked(found: amqp.Message) -> Any:
    """Return the arguments of a compressed message."""
    body = found.body if isinstance(found.body, bytes) else found.body.encode("latin-1")
    return json.loads(zlib.decompress(body))[0]


class Stamp(StampingVisitor):
    """Stamps everything with a tenant."""

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:  # noqa: ARG002
        """Return the stamps."""
        return {"tenant": "acme", "stamped_headers": ["tenant"]}


def stamped(task: Any) -> Signature:
    """Return a stamped signature."""
    signature = task.si(1)
    signature.stamp(Stamp())
    return signature


#: How a task is called, and what is to be seen of it in the queue.
FEATURES: dict[str, tuple[Callable[[Any], Any], Callable[[amqp.Message], bool]]] = {
    "shadow": (lambda t: t.apply_async((1,), shadow="alias"), lambda m: m.headers["shadow"] == "alias"),
    "link": (
        lambda t: t.apply_async((1,), link=t.si(2)),
        lambda m: embed_of(m)["callbacks"][0]["args"] == [2],
    ),
    "link_error": (
        lambda t: t.apply_async((1,), link_error=t.si(3)),
        lambda m: embed_of(m)["errbacks"][0]["args"] == [3],
    ),
    "compression": (
        lambda t: t.apply_async((1,), compression="zlib"),
        lambda m: m.headers["compression"] == "application/x-gzip" and unpacked(m) == [1],
    ),
    "time limits": (
        lambda t: t.apply_async((1,), time_limit=9, soft_time_limit=5),
        lambda m: m.headers["timelimit"] == [9, 5],
    ),
    "stamps": (
        lambda t: stamped(t).apply_async(),
        lambda m: "acme" in str(m.headers["stamps"]) and m.headers["stamped_headers"] == ["tenant"],
    ),
    "retry policy": (
        lambda t: t.apply_async((1,), retry=True, retry_policy={"max_retries": 1}),
        lambda m: json.loads(m.body)[0] == [1],
    ),
    "reply_to": (
        lambda t: t.apply_async((1,), reply_to="answers"),
        lambda m: m.properties["reply_to"] == "answers",
    ),
    "group and root": (
        lambda t: t.apply_async((1,), group_id="g", root_id="r", parent_id="p"),
        lambda m: (m.headers["group"], m.headers["root_id"], m.headers["parent_id"]) == ("g", "r", "p"),
    ),
}


@pytest.mark.parametrize("way", ["alone", "in a block"])
def test_every_feature_arrives(vhost: Vhost, app: Celery, way: str) -> None:
    """Shadow names, links, errbacks, compression, limits, stamps and ids arrive, singly and in a block."""
    task: Any = app.register_task(Note())
    with ExitStack() as stack:
        if way == "in a block":
            stack.enter_context(unlost.publishing(app))
        for call, _ in FEATURES.values():
            call(task)
    found = drained(vhost, WORK)
    assert len(found) == len(FEATURES)
    missing = [
        name for (name, (_, seen)), each in zip(FEATURES.items(), found, strict=True) if not seen(each)
    ]
    assert missing == []


def test_a_publish_needs_no_connection_of_celerys_pool(vhost: Vhost, app: Celery) -> None:
    """While others hold all of kombu's connections tasks are published all the same."""
    app.conf.broker_pool_limit = 1
    task: Any = app.register_task(Note())
    with app.pool.acquire(block=True):
        task.delay(1)
    assert [json.loads(found.body)[0] for found in drained(vhost, WORK)] == [[1]]


def test_a_publish_waits_for_a_producer_with_a_bound(vhost: Vhost, app: Celery) -> None:
    """While others hold all producers a publish fails within the pool's timeout; afterwards it works."""
    app.conf.broker_pool_limit = 1
    app.conf.broker_pool_acquire_timeout = 1.0
    task: Any = app.register_task(Note())
    with app.amqp.producer_pool.acquire(block=True):
        began = time.monotonic()
        with pytest.raises(OperationalError):
            task.delay(1)
        assert elapsed(began) < 10
    task.delay(2)
    assert [json.loads(found.body)[0] for found in drained(vhost, WORK)] == [[2]]


def test_an_event_takes_a_connection_and_gives_it_back(vhost: Vhost, app: Celery) -> None:
    """With ``task_send_sent_event`` each publish is told of, over the one connection of the pool."""
    app.conf.update(broker_pool_limit=1, task_send_sent_event=True, broker_pool_acquire_timeout=5.0)
    task: Any = app.register_task(Note())
    heard: list[str] = []
    with app.connection_for_read() as connection, connection.channel() as channel:
        queue = Queue("", Exchange("celeryev", "topic"), routing_key="task.sent", exclusive=True)(channel)
        queue.declare()
        sent = [task.delay(number).id for number in range(3)]
        wait_until(lambda: _take(queue, heard) == 3, PATIENCE, "all events are heard")
    assert heard == sent


def _take(queue: Any, heard: list[str]) -> int:
    found = queue.get(no_ack=True)
    if found is not None:
        # A batch of events, or one.
        events = found.payload if isinstance(found.payload, list) else [found.payload]
        heard.extend(event["uuid"] for event in events)
    return len(heard)


#: What makes greenlets of threads, and then time, sockets and locks wait without blocking the others.
PATCH = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import warnings; warnings.simplefilter('ignore'); import eventlet; eventlet.monkey_patch()",
}


@pytest.mark.parametrize("kind", PATCH)
def test_greenlets_publish_side_by_side(vhost: Vhost, kind: str) -> None:
    """Publishes of many greenlets wait together: none blocks the others, and all arrive."""
    if find_spec(kind) is None:  # not imported: eventlet warns that it is in maintenance
        pytest.skip(f"{kind} is not installed")
    declare_queue(vhost)
    script = PATCH[kind] + textwrap.dedent(
        """
        import sys, threading, time
        from tests.support.publishing import message, publisher

        ticks, over, failed = 0, False, []
        def tick():
            global ticks
            while not over:
                ticks += 1
                time.sleep(0.001)

        with publisher(sys.argv[1]) as publishing:
            def single(name):
                for n in range(20):
                    publishing.publish(message(body=f"{name} {n}"))
            def many(name):
                sent = [message(body=f"{name} {n}") for n in range(200)]
                published = list(publishing.publish_many(sent, window=20))
                assert [each.outgoing for each in published] == sent
                assert all(each.outcome == "ok" for each in published)
            def noted(act, name):
                try:
                    act(name)
                except BaseException as exc:
                    failed.append(repr(exc))
            ticker = threading.Thread(target=tick)
            running = [threading.Thread(target=noted, args=(single, f"s{n}")) for n in range(10)]
            running += [threading.Thread(target=noted, args=(many, f"m{n}")) for n in range(5)]
            for each in (ticker, *running):
                each.start()
            for each in running:
                each.join()
            over = True
            ticker.join()
        assert not failed, failed
        assert ticks > 10, ticks
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script, vhost.amqp_url], check=True, timeout=100, env=environment)
    bodies = Counter(found.body for found in drained(vhost))
    expected = [f"s{g} {n}" for g in range(10) for n in range(20)] + [
        f"m{g} {n}" for g in range(5) for n in range(200)
    ]
    assert bodies == Counter(expected)
