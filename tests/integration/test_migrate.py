"""Migrations on real brokers: what is inside, what is on its way, and a tool that is killed anywhere."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import amqp
import pytest
from kombu import Connection

from tests.support.forks import forks
from tests.support.migrating import QUICK, bodies, fill, management_of, migrate, plan_of, run_and_die
from tests.support.raw_amqp import get, open_channel
from tests.support.raw_amqp import publish as publish_raw
from unlost.broker.apply import apply
from unlost.broker.drain import read_facts
from unlost.broker.journal import create_journal, read_journal
from unlost.broker.migrate import State
from unlost.broker.mover import Mover
from unlost.errors import BrokerError, ConfigurationError, Unroutable
from unlost.testing.brokers import Vhost
from unlost.testing.waiting import wait_until
from unlost.topology import naming
from unlost.topology.migration import Conserved, Do
from unlost.topology.model import Delay, Topology, WorkQueue
from unlost.topology.objects import Binding, BrokerObject, Exchange, Policy, Queue, Value
from unlost.topology.replacement import QueueChange

pytestmark = pytest.mark.one_broker

QUORUM = {"x-queue-type": "quorum"}
CHANGE = QueueChange(source="pay", target="pay.v2", await_consumers=False)
PATIENCE = timedelta(seconds=60)
SHORT = replace(QUICK, wait=timedelta(seconds=2))


@pytest.fixture
def shop(vhost: Vhost) -> Vhost:
    """A vhost with a topic exchange and a classic queue ``pay``, bound by its name and by an event."""
    put(
        vhost,
        Exchange(name="shop"),
        Queue(name="pay"),
        Binding(source="shop", destination="pay", routing_key="pay"),
        Binding(source="shop", destination="pay", routing_key="order.placed"),
    )
    return vhost


def put(vhost: Vhost, *objects: BrokerObject) -> None:
    """Create objects."""
    with management_of(vhost) as management:
        for each in objects:
            management.put(each)


def names(vhost: Vhost) -> set[str]:
    """Return the names of all queues."""
    with management_of(vhost) as management:
        return {each.declared.name for each in management.queues()}


@contextmanager
def consuming(vhost: Vhost, queue: str, seen: Counter[int]) -> Iterator[None]:
    """Consume a queue in a thread, acking each message after it was counted."""
    ending = threading.Event()
    ready = threading.Event()

    def count(message: amqp.Message) -> None:
        seen[int(message.body)] += 1
        message.channel.basic_ack(message.delivery_tag)

    def work() -> None:
        with open_channel(vhost.amqp_url) as channel:
            channel.basic_qos(0, 20, False)
            channel.basic_consume(queue, callback=count)
            ready.set()
            while not ending.is_set():
                try:
                    channel.connection.drain_events(timeout=0.1)
                except TimeoutError:
                    continue

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(30)
        yield
    finally:
        ending.set()
        thread.join(30)


def test_a_classic_queue_becomes_a_quorum_queue(shop: Vhost, tmp_path: Path) -> None:
    """All messages are in the new queue in their order, the totals prove it, and all routes lead there."""
    fill(shop, "pay", 300)
    result = migrate(shop, tmp_path / "journal", plan_of(shop, CHANGE))
    assert (result.state, result.conserved) == (State.DONE, Conserved.YES)
    with open_channel(shop.amqp_url) as channel:
        for number, key in enumerate(("pay", "order.placed", "pay.v2"), start=300):
            assert publish_raw(channel, "shop", key, str(number))
    assert bodies(shop, "pay.v2") == list(range(303))
    with management_of(shop) as management:
        [queue] = management.queues()
    assert queue.declared.arguments == QUORUM
    assert read_journal(tmp_path / "journal", shop.name).moved == 300


def test_a_message_is_moved_as_it_is(shop: Vhost, tmp_path: Path) -> None:
    """Body, properties and headers of every type arrive unchanged."""
    headers: dict[str, Any] = {
        "task": "t",
        "none": None,
        "yes": True,
        "small": -5,
        "large": 2**62,
        "real": 1.5,
        "bytes": b"\xff\x00",
        "text": "ü€",
        "list": [1, "x", {"y": None}],
        "table": {"a": {"b": [2]}},
        "x-unlost-attempt": 2,
    }
    properties: dict[str, Any] = {
        "content_type": "application/json",
        "content_encoding": "binary",
        "delivery_mode": 2,
        "priority": 4,
        "correlation_id": "c",
        "reply_to": "r",
        "expiration": "3600000",
        "message_id": "m",
        "timestamp": 1_234_567_890,
        "type": "y",
        "app_id": "a",
    }
    with open_channel(shop.amqp_url) as channel:
        sent = amqp.Message(b"\xff\xfe\x00", application_headers=headers, **properties)
        channel.basic_publish_confirm(sent, "shop", "pay", mandatory=True)
    migrate(shop, tmp_path / "journal", plan_of(shop, CHANGE))
    with open_channel(shop.amqp_url) as channel:
        channel.auto_decode = False
        found = get(channel, "pay.v2")
    arrived = dict(found.properties)
    got = {k: v for k, v in arrived.pop("application_headers").items() if k != "x-delivery-count"}
    assert (bytes(found.body), arrived, got) == (b"\xff\xfe\x00", properties, headers)


def test_a_carbon_copy_is_not_sent_again(shop: Vhost, tmp_path: Path) -> None:
    """A CC header, which the broker obeys, does not copy the message into other queues once more."""
    put(shop, Queue(name="other"))
    with open_channel(shop.amqp_url) as channel:
        copied = amqp.Message("1", application_headers={"CC": ["other"]})
        channel.basic_publish_confirm(copied, "", "pay", mandatory=True)
    assert bodies(shop, "other") == [1]
    migrate(shop, tmp_path / "journal", plan_of(shop, CHANGE))
    assert (bodies(shop, "pay.v2"), bodies(shop, "other")) == ([1], [])


def test_what_workers_hold_is_waited_for(shop: Vhost, tmp_path: Path) -> None:
    """An ETA task that a worker holds unacknowledged is waited for, and moved when it comes back."""
    fill(shop, "pay", 3)
    file = tmp_path / "journal"
    with open_channel(shop.amqp_url) as channel:
        get(channel, "pay")
        result = migrate(
            shop, file, plan_of(shop, CHANGE), patience=replace(SHORT, wait=timedelta(seconds=8))
        )
        assert result.state is State.WAITING
        assert "1 are with consumers" in result.reason
    assert migrate(shop, file).state is State.DONE
    assert sorted(bodies(shop, "pay.v2")) == [0, 1, 2]


def test_pending_dead_letters_are_waited_for(vhost: Vhost, tmp_path: Path) -> None:
    """A dead letter that no queue takes yet stays in the old queue and keeps it from being deleted."""
    dead: dict[str, Any] = {
        "dead-letter-exchange": "dlx",
        "dead-letter-routing-key": "x",
        "dead-letter-strategy": "at-least-once",
        "overflow": "reject-publish",
    }
    put(
        vhost,
        Exchange(name="dlx"),
        Policy(name="p", pattern="^pay$", apply_to="queues", definition=dead),
        Queue(name="pay", arguments=QUORUM),
    )
    fill(vhost, "pay", 2)
    with open_channel(vhost.amqp_url) as channel:
        channel.basic_reject(get(channel, "pay").delivery_tag, requeue=False)
    file = tmp_path / "journal"
    result = migrate(vhost, file, plan_of(vhost, CHANGE), patience=replace(SHORT, wait=timedelta(seconds=12)))
    assert result.state is State.WAITING
    assert "1 wait for a retry or, as dead letters" in result.reason
    put(vhost, Queue(name="letters"), Binding(source="dlx", destination="letters", routing_key="x"))
    # An at-least-once dead letter is tried again after its confirm timeout of 3 minutes, or when its
    # worker starts anew, which a change of policy brings about.
    put(vhost, Policy(name="p", pattern="^pay$", apply_to="queues", definition=dead, priority=1))
    assert migrate(vhost, file, patience=replace(QUICK, wait=timedelta(minutes=4))).state is State.DONE
    assert bodies(vhost, "letters") == [0]
    assert bodies(vhost, "pay.v2") == [1]


def test_delayed_messages_arrive_in_the_new_queue(vhost: Vhost, tmp_path: Path) -> None:
    """Messages that were on the delay path, addressed to the old name, end up in the new queue."""
    topology = Topology(name="shop", queues={"pay": WorkQueue()}, delay=Delay(levels=4))
    with management_of(vhost) as management:
        apply(topology, management)
    change = replace(CHANGE, target="pay.v2", retire=True)
    with open_channel(vhost.amqp_url) as channel:
        entry = naming.delay_entry_exchange("shop", 4)
        for number, seconds in enumerate((2, 12)):
            key = naming.delay_routing_key(timedelta(seconds=seconds), "pay", 4)
            channel.basic_publish_confirm(amqp.Message(str(number), delivery_mode=2), entry, key)
        result = migrate(vhost, tmp_path / "journal", plan_of(vhost, change))
    assert result.state is State.DONE
    assert bodies(vhost, "pay.v2") == [0, 1]
    with management_of(vhost) as management:
        keys = {each.routing_key for each in management.bindings() if each.destination == "pay.v2"}
    assert keys == {"pay.v2", "#.q:pay.v2"}


def test_it_stops_before_the_last_step(shop: Vhost, tmp_path: Path) -> None:
    """Without the word to finish, the old queue stays; what strays into it meanwhile is moved at the end."""
    fill(shop, "pay", 5)
    file = tmp_path / "journal"
    result = migrate(shop, file, plan_of(shop, CHANGE), finish=False)
    assert result.state is State.READY
    assert names(shop) == {"pay", "pay.v2"}
    fill(shop, "pay", 2, start=5)
    assert migrate(shop, file).state is State.DONE
    assert bodies(shop, "pay.v2") == list(range(7))


def test_the_way_back_restores_all(shop: Vhost, tmp_path: Path) -> None:
    """Taken back, all messages are in the old queue, its routes are as before and nothing else is left."""
    with management_of(shop) as management:
        before = read_facts(management)
    fill(shop, "pay", 40)
    file = tmp_path / "journal"
    migrate(shop, file, plan_of(shop, CHANGE), finish=False)
    with open_channel(shop.amqp_url) as channel:
        assert publish_raw(channel, "shop", "order.placed", "40")
    result = migrate(shop, file, back=True)
    assert result.state is State.TAKEN_BACK
    # The broker's totals lag behind: they may prove nothing, but must not contradict.
    assert result.conserved is not Conserved.NO
    with management_of(shop) as management:
        assert set(map(repr, read_facts(management).objects)) == set(map(repr, before.objects))
    assert bodies(shop, "pay") == list(range(41))


def test_a_queue_is_rebuilt_under_its_name(shop: Vhost, tmp_path: Path) -> None:
    """In two hops the classic queue becomes a quorum queue of the same name with the same content."""
    fill(shop, "pay", 60)
    change = replace(CHANGE, target="pay")
    result = migrate(shop, tmp_path / "journal", plan_of(shop, change))
    assert result.state is State.DONE
    with management_of(shop) as management:
        [queue] = management.queues()
        keys = {each.routing_key for each in management.bindings()}
    assert queue.declared.arguments == QUORUM
    assert keys == {"pay", "order.placed"}
    assert bodies(shop, "pay") == list(range(60))


def test_consumers_of_the_new_queue_are_awaited(shop: Vhost, tmp_path: Path) -> None:
    """No route is switched before somebody consumes the new queue."""
    plan = plan_of(shop, replace(CHANGE, await_consumers=True))
    result = migrate(shop, tmp_path / "journal", plan, patience=SHORT)
    assert (result.state, result.reason) == (State.WAITING, "nobody consumes 'pay.v2' yet")
    with management_of(shop) as management:
        assert {each.destination for each in management.bindings()} == {"pay"}


def test_a_missing_twin_route_is_noticed(shop: Vhost, tmp_path: Path) -> None:
    """A route is not unbound from the old queue when the same route to the new one is gone."""
    plan = plan_of(shop, CHANGE)
    broken = replace(
        plan, steps=tuple(step for step in plan.steps if step.do is not Do.BIND), last=len(plan.steps) - 5
    )
    with pytest.raises(BrokerError, match=r"the same route to 'pay\.v2' is gone"):
        migrate(shop, tmp_path / "journal", broken)
    with open_channel(shop.amqp_url) as channel:
        assert publish_raw(channel, "shop", "pay")


def test_a_route_that_was_added_since_keeps_the_queue(shop: Vhost, tmp_path: Path) -> None:
    """The old queue is not deleted while a new route leads there."""
    file = tmp_path / "journal"
    migrate(shop, file, plan_of(shop, CHANGE), finish=False)
    put(shop, Binding(source="shop", destination="pay", routing_key="late"))
    with pytest.raises(BrokerError, match=r"shop -> pay \[late\] leads there since"):
        migrate(shop, file)
    assert "pay" in names(shop)


def test_missing_messages_are_noticed(shop: Vhost, tmp_path: Path) -> None:
    """When messages vanish from the new queue and nobody consumes, nothing is deleted."""
    fill(shop, "pay", 10)
    file = tmp_path / "journal"
    migrate(shop, file, plan_of(shop, CHANGE), finish=False)
    fill(shop, "pay", 10, start=10)
    with pytest.raises(BrokerError, match="gained -10 messages"):
        _migrate_with_thief(shop, file)
    assert "pay" in names(shop)


def _migrate_with_thief(vhost: Vhost, file: Path) -> None:
    """Go on while somebody purges the new queue behind the tool's back."""

    def steal() -> None:
        with open_channel(vhost.amqp_url) as channel:
            wait_until(
                lambda: channel.queue_declare("pay.v2", passive=True)[1] == 20, PATIENCE, "all are moved"
            )
            channel.queue_purge("pay.v2")

    thief = threading.Thread(target=steal)
    thief.start()
    try:
        migrate(vhost, file)
    finally:
        thief.join(60)


def test_an_unroutable_message_stays_in_the_old_queue(shop: Vhost) -> None:
    """When the new queue is gone nothing is acked, which is where a shovel would lose messages."""
    fill(shop, "pay", 10)
    mover = Mover(Connection(shop.amqp_url), "pay", "nowhere", window=5, keep_deaths=True)
    with mover, pytest.raises(Unroutable, match="'nowhere' is gone"):
        mover.run(PATIENCE)
    assert sorted(bodies(shop, "pay")) == list(range(10))


def test_what_a_full_queue_refuses_is_moved_later(shop: Vhost, tmp_path: Path) -> None:
    """Messages that the new queue nacks stay where they were, and follow when there is room."""
    full: dict[str, Value] = {"max-length": 20, "overflow": "reject-publish"}
    put(shop, Policy(name="full", pattern="^pay.v2$", apply_to="queues", definition=full))
    put(shop, Queue(name="pay.v2", arguments=QUORUM))
    fill(shop, "pay", 200)
    seen: Counter[int] = Counter()
    with consuming(shop, "pay.v2", seen):
        result = migrate(shop, tmp_path / "journal", plan_of(shop, CHANGE))
    assert result.state is State.DONE
    assert set(seen) == set(range(200))


def test_a_second_run_is_kept_out(shop: Vhost, tmp_path: Path) -> None:
    """Two runs cannot use one journal at the same time, nor one a journal of another vhost."""
    file = tmp_path / "journal"
    migrate(shop, file, plan_of(shop, CHANGE), finish=False)
    with pytest.raises(ConfigurationError, match="is of vhost"):
        read_journal(file, "elsewhere")
    with pytest.raises(ConfigurationError, match="cannot be created"):
        migrate(shop, file, plan_of(shop, QueueChange(source="pay", target="x")))


@pytest.mark.parametrize("back", [False, True])
def test_killed_at_every_point_it_goes_on(shop: Vhost, tmp_path: Path, back: bool) -> None:
    """Killed with SIGKILL at point after point of danger, it ends with every message, most of them once.

    Each run goes on where the one before died and dies some points later, at all kinds of points: before,
    within and after a line of the journal, and between a confirm and its ack.
    """
    fill(shop, "pay", 120)
    file = tmp_path / "journal"
    plan = plan_of(shop, CHANGE)
    if back:
        migrate(shop, file, plan, finish=False)
    else:
        with create_journal(file, plan, shop.name):
            pass
    deaths, distances = 0, cycle((1, 2, 3, 4, 11, 12, 13))
    with forks("tests.support.migrating") as children:
        while True:
            done = run_and_die(children, shop, file, next(distances), window=20, settle=1, back=back)
            if done.returncode == 0:
                break
            assert done.returncode == -9, done.stderr
            deaths += 1
    assert deaths > 2
    assert done.stdout.strip() == (State.TAKEN_BACK if back else State.DONE)
    found = Counter(bodies(shop, "pay" if back else "pay.v2"))
    assert set(found) == set(range(120))
    assert sum(found.values()) - 120 <= deaths * 20
    assert names(shop) == ({"pay"} if back else {"pay.v2"})
