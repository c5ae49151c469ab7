"""What tasks write into the outbox is what ``apply_async`` would have sent, and a relay sends it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import amqp
import pytest
import structlog
from celery import Celery, chain, chord, group
from pydantic import BaseModel, ValidationError
from sqlalchemy.orm import Session

import unlost
from tests.support.apps import OTHER, WORK, close, declare, reliable_app, shop
from tests.support.publishing import drained
from unlost import outbox
from unlost.core import headers as h
from unlost.errors import ConfigurationError, TopologyError
from unlost.idempotency.sql import SqlStore
from unlost.outbox.relay import Relay, sending
from unlost.outbox.store import OutboxStore
from unlost.outbox.wakeup import Poll
from unlost.tasks.runtime import runtime_of
from unlost.testing.brokers import Vhost

pytestmark = pytest.mark.one_broker

NEVER = threading.Event()

#: What differs between two calls: the time, and ids that are drawn anew.
_VARIES = {h.FIRST_PUBLISHED, h.CORRELATION_ID, h.DUE, h.EXPIRES}


class Charge(BaseModel):
    """The payload of the task below."""

    order_id: int


class Pay(unlost.ReliableTask):
    """A task that only ever is published here."""

    name = "shop.pay"
    queue = WORK
    payload = Charge

    def run(self, charge: Charge) -> None:
        """Never run."""


@pytest.fixture
def app(vhost: Vhost, tmp_path: Path) -> Iterator[Celery]:
    """Make an installed app on a vhost that has its topology."""
    declare(vhost, shop())
    made = reliable_app(vhost, tmp_path, shop())
    yield made
    close(made)


@pytest.fixture
def pay(app: Celery) -> Any:
    """Register the task."""
    return app.register_task(Pay())


@pytest.fixture
def store(app: Celery) -> OutboxStore:
    """Return the outbox beside the ledger."""
    ledger = runtime_of(app).ledger
    assert isinstance(ledger, SqlStore)
    return OutboxStore(ledger.database)


def relayed(app: Celery, store: OutboxStore) -> None:
    """Publish all that is in the outbox."""
    Relay(store, sending(runtime_of(app).publisher), Poll()).drain(NEVER)


def comparable(message: amqp.Message) -> tuple[Any, ...]:
    """Return all of a message that two calls with the same task id have in common."""
    headers = {name: value for name, value in message.headers.items() if name not in _VARIES}
    properties = {k: v for k, v in message.properties.items() if k not in ("application_headers",)}
    place = (message.delivery_info["exchange"], message.delivery_info["routing_key"])
    return place, headers, set(message.headers), properties, message.body


CALLS: dict[str, Callable[[Any], tuple[Any, dict[str, Any]]]] = {
    "a payload": lambda pay: (pay, {"kwargs": {"order_id": 1}}),
    "options": lambda pay: (
        pay,
        {
            "kwargs": {"order_id": 1},
            "queue": OTHER,
            "priority": 7,
            "headers": {"tenant": "acme"},
            "shadow": "x",
        },
    ),
    "compression": lambda pay: (pay, {"kwargs": {"order_id": 1}, "compression": "zlib"}),
    "an expiry": lambda pay: (pay, {"kwargs": {"order_id": 1}, "expires": 600}),
    "a signature": lambda pay: (pay.si(order_id=1).set(priority=3), {}),
    "links": lambda pay: (
        pay,
        {
            "kwargs": {"order_id": 1},
            "link": pay.si(order_id=2).set(task_id="l"),
            "link_error": pay.si(order_id=3).set(task_id="e"),
        },
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_relay_sends_what_apply_async_would_have_sent(
    vhost: Vhost, app: Celery, pay: Any, store: OutboxStore, call: str
) -> None:
    """Exchange, key, headers, properties and body are equal, whatever the call's options."""
    task, options = CALLS[call](pay)
    task.apply_async(task_id="t", **options)
    with Session(store.engine) as session, session.begin():
        result = outbox.apply_async(session, task, task_id="t", **options)
    queue = options.get("queue", WORK)
    (direct,) = drained(vhost, queue)
    relayed(app, store)
    (through,) = drained(vhost, queue)
    assert comparable(through) == comparable(direct)
    assert result.id == "t" == through.headers["id"]


CANVASES: dict[str, Callable[[Any], Any]] = {
    "chain": lambda pay: chain(pay.si(order_id=1), pay.si(order_id=2)),
    "group": lambda pay: group(pay.si(order_id=1), pay.si(order_id=2)),
    "group in a chain": lambda pay: chain(group(pay.si(order_id=1), pay.si(order_id=2)), pay.si(order_id=3)),
}


def shape(message: amqp.Message) -> tuple[str, list[int]]:
    """Return a message's task, and the order ids of itself and of what follows it."""
    _args, kwargs, embed = json.loads(message.body)
    follows = [each["kwargs"].get("order_id") for each in embed.get("chain") or []]
    return str(message.headers["task"]), [kwargs.get("order_id"), *follows]


@pytest.mark.parametrize("kind", CANVASES)
def test_a_canvas_commits_as_a_whole(
    vhost: Vhost, app: Celery, pay: Any, store: OutboxStore, kind: str
) -> None:
    """All first messages of a canvas are in the transaction: none is sent before it, all after it."""
    app.conf.result_backend = "cache+memory://"
    CANVASES[kind](pay).apply_async()
    direct = drained(vhost, WORK)
    with Session(store.engine) as session, session.begin():
        outbox.publish(session, CANVASES[kind](pay))
        assert drained(vhost, WORK) == []
    relayed(app, store)
    through = drained(vhost, WORK)
    assert [shape(each) for each in through] == [shape(each) for each in direct]
    assert len(through) >= 1


def test_a_chord_commits_as_a_whole(vhost: Vhost, app: Celery, pay: Any, store: OutboxStore) -> None:
    """Every message of a chord's header is written, with the chord's body in it."""
    app.conf.result_backend = "cache+memory://"
    with Session(store.engine) as session, session.begin():
        outbox.publish(session, chord([pay.si(order_id=1), pay.si(order_id=2)], pay.si(order_id=3)))
    assert drained(vhost, WORK) == []
    relayed(app, store)
    parts = [each for each in drained(vhost, WORK) if each.headers["task"] == "shop.pay"]
    bodies = [json.loads(each.body) for each in parts]
    assert sorted(kwargs["order_id"] for _args, kwargs, _embed in bodies) == [1, 2]
    assert {embed["chord"]["kwargs"]["order_id"] for _args, _kwargs, embed in bodies} == {3}


@pytest.mark.parametrize("how", ["publish", "delay_on_commit", "class"])
def test_a_rolled_back_transaction_publishes_nothing(
    vhost: Vhost, app: Celery, pay: Any, store: OutboxStore, how: str
) -> None:
    """Neither form leaves anything behind when the transaction does not commit; each does when it does."""

    def publish(session: Session) -> None:
        if how == "delay_on_commit":
            pay.delay_on_commit(session, order_id=1)
        else:
            outbox.publish(session, Pay if how == "class" else pay, order_id=1)

    with Session(store.engine) as session:
        publish(session)
        session.rollback()
    relayed(app, store)
    assert drained(vhost, WORK) == []
    with Session(store.engine) as session:
        publish(session)
        session.commit()
    relayed(app, store)
    assert [each.headers["task"] for each in drained(vhost, WORK)] == ["shop.pay"]


def test_the_callers_correlation_id_is_inherited(
    vhost: Vhost, app: Celery, pay: Any, store: OutboxStore
) -> None:
    """The context is that of the caller, not that of the relay."""
    with (
        structlog.contextvars.bound_contextvars(correlation_id="request-42"),
        Session(store.engine) as session,
    ):
        outbox.publish(session, pay, order_id=1)
        session.commit()
    relayed(app, store)
    (found,) = drained(vhost, WORK)
    assert found.headers[h.CORRELATION_ID] == "request-42"


@pytest.mark.parametrize(
    ("kwargs", "options", "error"),
    [({"order_id": "many"}, {}, ValidationError), ({"order_id": 1}, {"queue": "shop.wrok"}, TopologyError)],
)
def test_what_cannot_be_sent_is_not_written(
    app: Celery, pay: Any, store: OutboxStore, kwargs: Any, options: Any, error: type[Exception]
) -> None:
    """An invalid payload and an unknown queue raise in the caller's transaction."""
    with pytest.raises(error), Session(store.engine) as session:
        outbox.apply_async(session, pay, kwargs=kwargs, **options)
    assert store.status().pending == 0


def test_an_eager_app_is_refused(app: Celery, pay: Any, store: OutboxStore) -> None:
    """task_always_eager would run the task before the commit, so it is refused."""
    app.conf.task_always_eager = True
    with pytest.raises(ConfigurationError, match="task_always_eager"), Session(store.engine) as session:
        outbox.publish(session, pay, order_id=1)


def test_a_task_of_a_plain_app_is_refused(store: OutboxStore) -> None:
    """Without unlost on its app a task has no outbox."""
    plain = Celery("plain", set_as_current=False)

    @plain.task(shared=False)
    def work() -> None:
        """Do nothing."""

    with pytest.raises(ConfigurationError, match="install"), Session(store.engine) as session:
        outbox.publish(session, work)
