"""What becomes of a delay when clocks or levels are not as they should be: nothing is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import amqp
import pytest

from tests.support.apps import WORK, close, declare, reliable_app
from tests.support.misbehaving_topology import TOPOLOGY
from tests.support.raw_amqp import get, open_channel
from tests.support.workers import Bench, bench
from unlost.broker.apply import apply
from unlost.broker.management import Management
from unlost.core import headers as h
from unlost.testing.brokers import Broker, Vhost
from unlost.topology import naming
from unlost.topology.expand import expand
from unlost.topology.model import Topology, WorkQueue
from unlost.topology.objects import Exchange, Queue

LEVELS = 6
ENTRY = naming.delay_entry_exchange("t", LEVELS)
HOUR_MS = 3_600_000
YEAR = timedelta(days=365)


@pytest.fixture
def shop(vhost: Vhost, tmp_path: Path) -> Iterator[Bench]:
    """The misbehaving app on a fresh vhost."""
    with bench(vhost, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def open_shop(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The same with a worker, for tests that leave everything as it was."""
    with broker.fresh_vhost() as vhost, bench(vhost, tmp_path_factory.mktemp("shop")) as made:
        made.start("-E")
        yield made


def publish_delayed(shop: Bench, label: str, delay: timedelta, due_ms: float, exchange: str = ENTRY) -> None:
    """Send a task by the delay path as a publisher would whose clock says something else than ours."""
    headers = {"task": "t.leaves_trace", "id": label, h.QUEUE: "t.work", h.DUE: int(due_ms)}
    key = naming.delay_routing_key(delay, "t.work", LEVELS)
    body = json.dumps([[label], {}, {}])
    with shop.channel() as channel:
        channel.confirm_select()
        message = amqp.Message(
            body,
            application_headers=headers,
            content_type="application/json",
            content_encoding="utf-8",
            delivery_mode=2,
        )
        channel.basic_publish(message, exchange, key)
        channel.wait(amqp.spec.Basic.Ack, timeout=10)


def apply_again(vhost: Vhost) -> None:
    """Create what is missing of the topology."""
    with Management(vhost.management_url, vhost.name) as management:
        apply(Topology.model_validate(TOPOLOGY), management)


@pytest.mark.parametrize("off_ms", [HOUR_MS, -HOUR_MS], ids=["behind", "ahead"])
@pytest.mark.one_broker
def test_a_worker_whose_clock_is_an_hour_off_runs_what_has_waited(open_shop: Bench, off_ms: int) -> None:
    """The broker has measured the wait; that worker's and publisher's clocks disagree is no matter."""
    label, sent = f"skewed-{off_ms}", time.time() * 1000
    publish_delayed(open_shop, label, timedelta(seconds=2), sent + 2000 + off_ms)
    open_shop.wait_for(lambda: open_shop.runs()[label] == 1, "it ran")
    assert time.time() * 1000 >= sent + 2000


@pytest.mark.one_broker
def test_what_comes_off_the_path_too_early_goes_round_once_more(open_shop: Bench) -> None:
    """A wait as long as the path has may be the beginning of a longer one: then its due time decides."""
    due = time.time() * 1000 + 4000
    # As the path delivers the first lap of a longer delay.
    lap = naming.longest_delay(LEVELS)
    publish_delayed(open_shop, "long", lap, due, exchange=naming.delay_delivery_exchange("t"))
    open_shop.wait_for(lambda: open_shop.runs()["long"] == 1, "it ran")
    assert time.time() * 1000 >= due


@pytest.mark.one_broker
def test_a_year_ahead_waits_on_the_path(vhost: Vhost, tmp_path: Path) -> None:
    """With the usual levels a year is one lap: the message lies in one level's queue, with its due time."""
    topology = Topology(name="shop", queues={WORK: WorkQueue()})
    assert naming.longest_delay(topology.delay.levels) >= YEAR
    declare(vhost, topology)
    app = reliable_app(vhost, tmp_path, topology)
    eta = datetime.now(UTC) + YEAR
    app.send_task("shop.later", queue=WORK, eta=eta)
    close(app)
    level = int(YEAR.total_seconds()).bit_length() - 1
    with open_channel(vhost.amqp_url) as channel:
        waiting = get(channel, naming.delay_level("shop", level))
    assert abs(waiting.headers[h.DUE] - eta.timestamp() * 1000) <= 1
    assert "expiration" not in waiting.properties


@pytest.mark.parametrize("gone", [f"level {LEVELS - 1}", "level 1", "delivery"])
@pytest.mark.one_broker
def test_a_worker_does_not_start_on_an_incomplete_delay_path(shop: Bench, vhost: Vhost, gone: str) -> None:
    """It names what is missing and how to create it."""
    with Management(vhost.management_url, vhost.name) as management:
        if gone == "delivery":
            missing = naming.delay_delivery_exchange("t")
            management.delete(Exchange(name=missing, type="topic"))
        else:
            missing = naming.delay_level("t", int(gone.split()[1]))
            management.delete(Queue(name=missing))
    worker = shop.start(wait=False)
    assert worker.wait(timeout=60) == 2
    assert missing in shop.log()
    assert "unlost topology apply" in shop.log()


@pytest.mark.one_broker
def test_a_retry_whose_path_is_gone_is_held_until_it_is_back(shop: Bench, vhost: Vhost) -> None:
    """The worker goes on trying to publish it, and the delivery stays unacked; nothing is run twice."""
    shop.start()
    with Management(vhost.management_url, vhost.name) as management:
        management.delete(Exchange(name=ENTRY, type="topic"))
    shop.call("m.recovers.delay('r')")
    decided = "select sent from unlost_messages where state = 'waiting'"
    shop.wait_for(lambda: [each.sent for each in shop.rows(decided)] == [0], "its retry is decided")
    apply_again(vhost)
    shop.wait_for(lambda: shop.states() == {"done": 1}, "it is done", timedelta(seconds=60))
    assert shop.runs() == {"r": 2}


@pytest.mark.one_broker
def test_what_a_missing_level_cannot_take_is_kept_in_unroutable(shop: Bench, vhost: Vhost) -> None:
    """The level's queue is gone and its exchange is there: the message is where an operator can see it."""
    with Management(vhost.management_url, vhost.name) as management:
        management.delete(Queue(name=naming.delay_level("t", 1)))
    shop.call("m.leaves_trace.apply_async(('x',), countdown=2)")
    with open_channel(vhost.amqp_url) as channel:
        kept = get(channel, naming.unroutable_queue_of("t"))
    assert kept.headers["task"] == "t.leaves_trace"


@pytest.mark.one_broker
def test_a_level_that_is_full_refuses_and_nothing_is_lost(vhost: Vhost, tmp_path: Path) -> None:
    """The publisher is told; a retry is held by its worker until there is room."""
    with (
        bench(vhost, tmp_path, UNLOST_PUBLISH_PATIENCE="1") as shop,
        Management(vhost.management_url, vhost.name) as management,
    ):
        limit(management, naming.delay_level("t", 2))
        shop.start()
        confirmed, error = shop.call(FILL).split()
        assert error == "Refused"
        shop.call("m.postponed.delay('r', 5)")
        done = {"done": int(confirmed) + 1}
        shop.wait_for(lambda: shop.states() == done, "all are done", timedelta(seconds=60))
        assert shop.runs()["r"] == 2


def limit(management: Management, name: str) -> None:
    """Let a queue hold one message; a queue has one policy, so this one repeats all else of the usual."""
    expanded = expand(Topology.model_validate(TOPOLOGY), management.version())
    usual = expanded.policy_of(next(queue for queue in expanded.queues if queue.name == name))
    assert usual is not None
    limited = {**usual.definition, "max-length": 1}
    management.put(replace(usual, name="full", priority=usual.priority + 1, definition=limited))


#: Sends with five seconds' delay until it is refused; says how often it was confirmed, and the error.
FILL = """
import unlost.errors
n = 0
try:
    while n < 100:
        m.leaves_trace.apply_async((f'f{n}',), countdown=5)
        n += 1
except unlost.errors.Refused as exc:
    print(n, type(exc).__name__)
"""


@pytest.mark.one_broker
def test_what_has_expired_is_a_letter(open_shop: Bench) -> None:
    """Its body never runs."""
    open_shop.call("m.leaves_trace.apply_async(('stale',), task_id='stale', expires=-60)")
    assert letter(open_shop, "stale")["x-unlost-death-reason"] == "expired"
    assert open_shop.runs()["stale"] == 0


@pytest.mark.one_broker
def test_what_has_expired_is_dropped_if_its_task_says_so(open_shop: Bench) -> None:
    """It is cancelled for all its copies and logged, and no letter is written."""
    open_shop.call("m.drops_expired.apply_async(('dropped',), task_id='dropped', expires=-60)")
    open_shop.wait_for(lambda: "dropped, as its task says" in open_shop.log(), "it is logged")
    open_shop.wait_for(lambda: row(open_shop, "dropped") == "cancelled", "it is settled")
    assert [each["id"] for each, _ in open_shop.letters() if each["id"] == "dropped"] == []
    assert open_shop.runs()["dropped"] == 0


@pytest.mark.one_broker
def test_a_retry_beyond_the_expiry_is_a_letter(open_shop: Bench) -> None:
    """The first attempt ran in time; the second is too late, and the broker has not dropped it."""
    open_shop.call("m.comes_too_late.apply_async(('late',), task_id='late', expires=5)")
    headers = letter(open_shop, "late")
    assert (headers["x-unlost-death-reason"], headers["x-unlost-attempt"]) == ("expired", 2)
    assert open_shop.runs()["late"] == 1


def letter(shop: Bench, task_id: str) -> dict[str, Any]:
    """Wait for the letter of a task and return its headers."""

    def found() -> list[dict[str, Any]]:
        return [headers for headers, _ in shop.letters() if headers["id"] == task_id]

    shop.wait_for(found, "the letter is there")
    return found()[0]


def row(shop: Bench, task_id: str) -> str:
    """Return where a message stands."""
    rows = shop.rows("select message, state from unlost_messages")
    return next((str(each.state) for each in rows if f"[{task_id}]" in each.message), "")


def redeliveries(vhost: Vhost, queue: str, times: int) -> list[float]:
    """Reject a message that often, and return the seconds after which it came again each time."""
    waits = []
    with open_channel(vhost.amqp_url) as channel:
        message = get(channel, queue)
        for _ in range(times):
            channel.basic_reject(message.delivery_tag, requeue=True)
            begun = time.monotonic()
            message = get(channel, queue)
            waits.append(time.monotonic() - begun)
        channel.basic_ack(message.delivery_tag)
    return waits


def test_redeliveries_after_a_crash_are_spaced_where_the_broker_can(shop: Bench, vhost: Vhost) -> None:
    """From RabbitMQ 4.3 on the policy holds each back for half a second or more, at most two; before, not."""
    shop.call("m.leaves_trace.delay('x')")
    with Management(vhost.management_url, vhost.name) as management:
        version = management.version()
    waits = redeliveries(vhost, "t.work", 3)
    if version >= (4, 3):
        assert all(wait >= 0.45 for wait in waits), waits
    else:
        assert len(waits) == 3
