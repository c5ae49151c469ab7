"""What Celery's callers publish through an installed app, seen on the wire."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import amqp
import pytest
import structlog
from celery import Celery, chain, group
from pydantic import BaseModel, ValidationError

import unlost
from tests.support.apps import LEVELS, OTHER, WORK, close, declare, reliable_app, shop
from tests.support.publishing import drained
from tests.support.raw_amqp import get, open_channel
from unlost.core import headers as h
from unlost.core.clock import epoch_ms
from unlost.errors import ConfigurationError, TopologyError, Unroutable
from unlost.testing.brokers import Vhost
from unlost.topology import naming

SECRET = "4111-1111"


class Charge(BaseModel):
    """The payload of the task below."""

    order_id: int
    card: str = SECRET


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


def only(vhost: Vhost, queue: str = WORK) -> amqp.Message:
    """Return the one message of a queue."""
    (found,) = drained(vhost, queue)
    return found


def assert_first_publish(found: amqp.Message, *, task: str, queue: str = WORK) -> None:
    """Assert the headers and properties that every first publish carries."""
    headers, properties = found.headers, found.properties
    assert headers["task"] == task
    assert headers[h.VERSION] == h.CURRENT_VERSION
    assert (headers[h.ATTEMPT], headers[h.REDRIVES]) == (1, 0)
    assert headers[h.QUEUE] == queue
    assert headers[h.CORRELATION_ID]
    assert abs(time.time() * 1000 - headers[h.FIRST_PUBLISHED]) < 60_000
    assert properties["message_id"] == f"{headers['id']}.0.1"
    assert properties["delivery_mode"] == 2
    assert properties["priority"] == 0
    assert "expiration" not in properties
    assert headers.get("eta") is None
    assert headers.get("expires") is None
    assert (headers["argsrepr"], headers["kwargsrepr"]) == ("<redacted>", "<redacted>")
    assert SECRET not in json.dumps(dict(headers), default=str)


def test_a_delayed_call_is_in_its_queue_when_it_returns(vhost: Vhost, pay: Any) -> None:
    """delay() of a ReliableTask returns when its validated payload is in its queue, with our headers."""
    result = pay.delay(Charge(order_id=7))
    found = only(vhost)
    assert_first_publish(found, task="shop.pay")
    assert found.headers["id"] == result.id
    assert json.loads(found.body)[:2] == [[], {"order_id": 7, "card": SECRET}]


def test_a_task_of_another_service_is_published_by_name(vhost: Vhost, app: Celery) -> None:
    """send_task() of a name that is not registered here carries the same headers."""
    app.send_task("warehouse.pack", args=[SECRET], queue=OTHER)
    assert_first_publish(only(vhost, OTHER), task="warehouse.pack", queue=OTHER)


def test_the_first_task_of_a_chain_and_of_a_group_is_confirmed(vhost: Vhost, pay: Any) -> None:
    """Canvas goes through the same publisher: each message it sends is a first publish with our headers."""
    chain(pay.si(order_id=1), pay.si(order_id=2))()
    group(pay.si(order_id=3), pay.si(order_id=4))()
    found = drained(vhost, WORK)
    assert len(found) == 3
    for each in found:
        assert_first_publish(each, task="shop.pay")
    ((follower,),) = [json.loads(each.body)[2]["chain"] for each in found if "order_id" in each.body][:1]
    assert follower["kwargs"]["order_id"] == 2


def test_a_plain_link_has_its_id_before_it_is_published(vhost: Vhost, pay: Any) -> None:
    """A callback's task id is fixed in the message, so that a second dispatch makes no second task."""
    pay.apply_async(kwargs={"order_id": 1}, link=pay.si(order_id=2))
    (callback,) = json.loads(only(vhost).body)[2]["callbacks"]
    assert callback["options"]["task_id"]


def test_the_callers_correlation_id_is_inherited(vhost: Vhost, pay: Any) -> None:
    """What the application has bound in structlog travels; without it each call begins one of its own."""
    with structlog.contextvars.bound_contextvars(correlation_id="request-42"):
        pay.delay(order_id=1)
    pay.delay(order_id=2)
    first, second = (each.headers[h.CORRELATION_ID] for each in drained(vhost, WORK))
    assert first == "request-42"
    assert second != first


def test_a_callers_own_headers_travel_and_cannot_pose_as_ours(vhost: Vhost, pay: Any) -> None:
    """Own headers are kept; ours are not overwritten, and the broker's are dropped."""
    forged = {"tenant": "acme", h.ATTEMPT: 99, h.REDRIVES: 9, "x-first-death-queue": "q", h.HOLDER: "me"}
    pay.apply_async(kwargs={"order_id": 1}, headers=forged)
    found = only(vhost)
    assert_first_publish(found, task="shop.pay")
    assert found.headers["tenant"] == "acme"
    assert "x-first-death-queue" not in found.headers
    assert h.HOLDER not in found.headers


def test_a_chosen_priority_is_kept(vhost: Vhost, pay: Any) -> None:
    """A priority that the caller names is sent; the default is an explicit 0."""
    pay.apply_async(kwargs={"order_id": 1}, priority=7)
    assert only(vhost).properties["priority"] == 7


def test_an_expiry_is_our_header_and_never_the_brokers(vhost: Vhost, pay: Any) -> None:
    """``expires`` becomes a header that the worker checks: the broker would drop the message."""
    before = time.time() * 1000
    pay.apply_async(kwargs={"order_id": 1}, expires=60)
    found = only(vhost)
    assert_first_publish(found, task="shop.pay")
    assert before + 59_000 < found.headers[h.EXPIRES] < before + 65_000


@pytest.mark.parametrize(
    "when",
    [
        {"countdown": 0.2},
        {"countdown": 2.5, "expires": 600},
        {"eta": timedelta(seconds=1.3)},
    ],
    ids=["countdown 0.2", "countdown 2.5", "eta"],
)
def test_a_delay_ends_on_the_work_queue_in_time(vhost: Vhost, pay: Any, when: dict[str, Any]) -> None:
    """A countdown or an eta arrives on the work queue, not before it is due and less than 1.5 s after."""
    asked = datetime.now(UTC)
    if "eta" in when:
        when = {"eta": asked + when["eta"]}
    pay.apply_async(kwargs={"order_id": 1}, **when)
    with open_channel(vhost.amqp_url) as channel:
        found = get(channel, WORK)
        arrived = time.time() * 1000
    assert_first_publish(found, task="shop.pay")
    due = found.headers[h.DUE]
    wanted = when["eta"] if "eta" in when else asked + timedelta(seconds=when["countdown"])
    assert -1 <= due - epoch_ms(wanted) < 500
    assert due <= arrived < due + 1500


def test_a_countdown_of_zero_is_immediate(vhost: Vhost, pay: Any) -> None:
    """No delay and a due time in the past go straight to the queue."""
    pay.apply_async(kwargs={"order_id": 1}, countdown=0)
    pay.apply_async(kwargs={"order_id": 2}, eta=datetime.now(UTC) - timedelta(minutes=1))
    assert [each.delivery_info["exchange"] for each in drained(vhost, WORK)] == ["shop", "shop"]


def test_a_delay_beyond_the_path_waits_on_it_with_its_true_due_time(vhost: Vhost, pay: Any) -> None:
    """A countdown longer than the levels can hold is on the path, and says when it is really due."""
    asked = time.time() * 1000
    pay.apply_async(kwargs={"order_id": 1}, countdown=3600)
    with open_channel(vhost.amqp_url) as channel:
        found = get(channel, naming.delay_level("shop", LEVELS - 1))
    assert asked + 3_600_000 - 1 <= found.headers[h.DUE] < asked + 3_660_000


@pytest.fixture
def exchange(vhost: Vhost, app: Celery) -> str:
    """Declare an exchange that is not the topology's, bound to one of its queues."""
    with open_channel(vhost.amqp_url) as channel:
        channel.exchange_declare("warehouse", "topic", durable=True, auto_delete=False)
        channel.queue_bind(OTHER, "warehouse", "packing")
    return "warehouse"


def test_a_countdown_to_an_exchange_of_ones_own_is_refused(vhost: Vhost, app: Celery, exchange: str) -> None:
    """The delay path ends at a queue, so an explicit exchange with a countdown is a ConfigurationError."""
    with pytest.raises(ConfigurationError, match=r"warehouse\.pack.*queue="):
        app.send_task("warehouse.pack", exchange=exchange, routing_key="packing", countdown=5)
    assert drained(vhost, OTHER) == []


def test_an_exchange_of_ones_own_is_confirmed_too(vhost: Vhost, app: Celery, exchange: str) -> None:
    """With an explicit exchange and key the message is routed by them, mandatory like all others."""
    app.send_task("warehouse.pack", exchange=exchange, routing_key="packing")
    assert only(vhost, OTHER).headers["task"] == "warehouse.pack"
    with pytest.raises(Unroutable):
        app.send_task("warehouse.pack", exchange=exchange, routing_key="nowhere")


def test_an_unknown_queue_is_refused_with_a_suggestion(vhost: Vhost, app: Celery, pay: Any) -> None:
    """A mistyped queue is a TopologyError that names the one that was meant."""
    with pytest.raises(TopologyError, match=r"'shop\.wrok'.*did you mean 'shop\.work'"):
        app.send_task("warehouse.pack", queue="shop.wrok")
    with pytest.raises(TopologyError, match=r"did you mean 'shop\.work'"):
        pay.apply_async(kwargs={"order_id": 1}, queue="shop.wrok")
    assert drained(vhost, WORK) == []


@pytest.mark.parametrize(
    ("args", "kwargs", "error"),
    [
        ((), {"order_id": "many"}, ValidationError),
        ((), {}, ValidationError),
        (({"order_id": None},), {}, ValidationError),
        ((1, 2), {}, TypeError),
    ],
)
def test_an_invalid_payload_is_never_sent(
    vhost: Vhost, pay: Any, args: Any, kwargs: Any, error: type[Exception]
) -> None:
    """Arguments that make no payload raise where they were written, and nothing is published."""
    with pytest.raises(error):
        pay.delay(*args, **kwargs)
    assert drained(vhost, WORK) == []


def test_a_missing_topology_is_an_error_of_the_caller(vhost: Vhost, tmp_path: Path) -> None:
    """delay() on a vhost where nothing was applied raises Unroutable and says what to do."""
    app = reliable_app(vhost, tmp_path, shop())
    try:
        task: Any = app.register_task(Pay())
        with pytest.raises(Unroutable, match="Apply the topology"):
            task.delay(order_id=1)
    finally:
        close(app)
