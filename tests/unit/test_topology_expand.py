"""What follows from a topology: safe by construction, for every version of the broker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection
from kombu.transport import native_delayed_delivery as kombu_delay

from unlost.errors import TopologyError
from unlost.topology import naming
from unlost.topology.expand import Expanded, expand
from unlost.topology.model import Delay, Topology, WorkQueue
from unlost.topology.objects import Binding, BrokerObject, Exchange, Policy, Queue

VERSIONS = [(3, 10), (3, 13), (4, 0), (4, 3)]

queue_names = st.from_regex(r"[a-z0-9_+()-]{1,6}(\.[a-z0-9$^]{1,6}){0,2}", fullmatch=True)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Draw a topology whose queue names hold characters that mean something in a regular expression."""
    names = draw(st.sets(queue_names, max_size=4))
    return Topology(
        name=draw(st.sampled_from(["shop", "s.h+p", "a"])),
        exchange="tasks",
        queues={name: WorkQueue(without_store=draw(st.booleans())) for name in names},
        delay=Delay(levels=draw(st.integers(1, naming.MAX_LEVELS))),
    )


def shop(**settings: object) -> Topology:
    """Build a topology of one queue."""
    queue = WorkQueue.model_validate(settings)
    return Topology(name="shop", queues={"shop.stock": queue}, delay=Delay(levels=4))


def settings_of(expanded: Expanded, queue: str) -> dict[str, object]:
    """Return the settings in effect on a queue."""
    (found,) = (each for each in expanded.queues if each.name == queue)
    policy = expanded.policy_of(found)
    assert policy is not None
    return dict(policy.definition)


def governing(policies: Iterable[Policy], candidate: Exchange | Queue) -> list[Policy]:
    """Return every policy that matches an object."""
    return [policy for policy in policies if policy.governs(candidate)]


@given(topologies(), st.sampled_from(VERSIONS))
def test_one_policy_governs_each_object(topology: Topology, version: tuple[int, int]) -> None:
    """Each queue and each exchange the broker publishes to has one policy; the application's has none."""
    expanded = expand(topology, version)
    for queue in expanded.queues:
        assert len(governing(expanded.policies, queue)) == 1
    without = {topology.exchange, naming.unroutable_exchange_of(topology.name)}
    for exchange in expanded.exchanges:
        assert len(governing(expanded.policies, exchange)) == (exchange.name not in without)


@given(topologies())
def test_the_order_is_safe_to_stop_within(topology: Topology) -> None:
    """Whatever prefix was applied: no queue without its policy, no object used before it is there."""
    seen: list[BrokerObject] = []
    for each in expand(topology, (4, 3)).objects:
        names = {(one.kind, one.key) for one in seen}
        if isinstance(each, Queue):
            assert governing([one for one in seen if isinstance(one, Policy)], each)
        if isinstance(each, Binding):
            assert ("exchange", each.source) in names
            assert (each.destination_type, each.destination) in names
        if isinstance(each, Policy):
            for key in ("dead-letter-exchange", "alternate-exchange"):
                assert each.definition.get(key) is None or ("exchange", each.definition[key]) in names
        seen.append(each)


def test_work_queues_are_bound_before_the_application_can_publish() -> None:
    """The application's exchange and its bindings come last, when a letter already has its queue."""
    objects = expand(shop(), (4, 3)).objects
    assert objects[-2:] == (
        Exchange(name="shop"),
        Binding(source="shop", destination="shop.stock", routing_key="shop.stock"),
    )


def test_a_level_does_not_match_another_that_begins_alike() -> None:
    """The policy of level 2 leaves level 20 alone."""
    expanded = expand(Topology(name="shop", queues={}), (4, 3))
    (two,) = (each for each in expanded.policies if each.name == naming.queue_policy_of(level_name(2)))
    matched = [queue.name for queue in expanded.queues if two.governs(queue)]
    assert matched == [level_name(2)]


def level_name(level: int) -> str:
    """Return the name of a level of the shop."""
    return naming.delay_level("shop", level)


def test_the_delay_path_is_that_of_kombu() -> None:
    """With 28 levels, exchanges, queues, bindings and TTLs are exactly those that kombu declares."""
    ours = expand(Topology(name="shop", queues={}), (4, 3))
    theirs = Recorder()
    kombu_delay.declare_native_delayed_delivery_exchanges_and_queues(theirs, "quorum", "shop")
    delay = "shop_celery_delayed_"
    assert {each.name for each in ours.exchanges if each.name.startswith(delay)} == theirs.exchanges
    assert {each.name for each in ours.queues if each.name.startswith(delay)} == set(theirs.queues)
    assert {
        (each.source, each.destination, each.routing_key)
        for each in ours.bindings
        if each.source.startswith(delay)
    } == theirs.bindings
    for name, arguments in theirs.queues.items():
        settings = {f"x-{key}": value for key, value in settings_of(ours, name).items()}
        assert {"x-queue-type": "quorum", **settings} == arguments


class Recorder(Connection):
    """Records what kombu declares; opens no connection."""

    def __init__(self) -> None:
        super().__init__("memory://")
        self.exchanges: set[str] = set()
        self.queues: dict[str, dict[str, object]] = {}
        self.bindings: set[tuple[str, str, str]] = set()

    def channel(self) -> Recorder:
        """Return itself as the channel."""
        return self

    no_ack_consumers = None

    def exchange_declare(self, exchange: str, **_: object) -> None:
        """Record an exchange."""
        self.exchanges.add(exchange)

    def queue_declare(self, queue: str, arguments: dict[str, object], **_: object) -> tuple[str, int, int]:
        """Record a queue."""
        self.queues[queue] = arguments
        return queue, 0, 0

    def prepare_queue_arguments(self, arguments: dict[str, object], **_: object) -> dict[str, object]:
        """Leave arguments alone."""
        return arguments

    def queue_bind(self, queue: str, exchange: str, routing_key: str, **_: object) -> None:
        """Record a binding of a queue."""
        if exchange:
            self.bindings.add((exchange, queue, routing_key))

    def exchange_bind(self, destination: str, source: str, routing_key: str, **_: object) -> None:
        """Record a binding of an exchange."""
        self.bindings.add((source, destination, routing_key))


@pytest.mark.parametrize(
    ("version", "absent", "present"),
    [
        ((3, 10), {"delivery-limit", "consumer-timeout", "delayed-retry-type"}, set()),
        ((3, 12), {"delivery-limit", "delayed-retry-type"}, {"consumer-timeout"}),
        ((4, 0), {"delayed-retry-type"}, {"consumer-timeout", "delivery-limit"}),
        ((4, 3), set(), {"consumer-timeout", "delivery-limit", "delayed-retry-type"}),
    ],
)
def test_newer_settings_are_left_out_for_older_brokers(
    version: tuple[int, int], absent: set[str], present: set[str]
) -> None:
    """A policy holds only keys that the broker's version knows."""
    keys = set(settings_of(expand(shop(), version), "shop.stock"))
    assert not keys & absent
    assert keys >= present


@pytest.mark.parametrize("version", VERSIONS)
def test_a_work_queue_dead_letters_at_least_once(version: tuple[int, int]) -> None:
    """A rejected message is transferred with confirms, to its own letter queue whatever key it came with."""
    settings = settings_of(expand(shop(), version), "shop.stock")
    assert settings["dead-letter-strategy"] == "at-least-once"
    assert settings["overflow"] == "reject-publish"
    assert settings["dead-letter-exchange"] == "shop.dlx"
    assert settings["dead-letter-routing-key"] == "shop.stock"


def test_only_a_queue_without_store_has_a_delivery_limit() -> None:
    """The broker counts deliveries only where no ledger does."""
    assert settings_of(expand(shop(), (4, 3)), "shop.stock")["delivery-limit"] == -1
    for version in VERSIONS:
        limited = expand(shop(without_store=True), version)
        assert settings_of(limited, "shop.stock")["delivery-limit"] == 100


def test_consumer_timeout_is_in_milliseconds_and_may_be_left_to_the_broker() -> None:
    """A consumer timeout becomes milliseconds; None sets none."""
    timed = expand(shop(consumer_timeout=timedelta(seconds=90)), (4, 3))
    assert settings_of(timed, "shop.stock")["consumer-timeout"] == 90_000
    assert "consumer-timeout" not in settings_of(expand(shop(consumer_timeout=None), (4, 3)), "shop.stock")


@pytest.mark.parametrize("queue", ["shop.stock.dlq", "shop.unroutable"])
def test_letters_never_leave_by_themselves(queue: str) -> None:
    """A queue that holds letters has no limit, and refuses the newest if an operator sets one."""
    refusing = {"overflow": "reject-publish"}
    assert settings_of(expand(shop(), (4, 3)), queue) == {"delivery-limit": -1, **refusing}
    assert settings_of(expand(shop(), (3, 10)), queue) == refusing


@given(topologies(), st.sampled_from(VERSIONS))
def test_no_policy_is_empty(topology: Topology, version: tuple[int, int]) -> None:
    """RabbitMQ 3.10 refuses a policy that says nothing."""
    assert all(policy.definition for policy in expand(topology, version).policies)


def test_arguments_hold_only_what_no_policy_can_set() -> None:
    """Queues are quorum queues; single active consumer is the only other argument."""
    expanded = expand(shop(single_active_consumer=True), (4, 3))
    arguments = {queue.name: dict(queue.arguments) for queue in expanded.queues}
    assert arguments.pop("shop.stock") == {"x-queue-type": "quorum", "x-single-active-consumer": True}
    assert all(each == {"x-queue-type": "quorum"} for each in arguments.values())


def test_a_broker_that_cannot_dead_letter_safely_is_refused() -> None:
    """Before 3.10 a quorum queue dead-letters at most once, so there is no safe topology."""
    with pytest.raises(TopologyError, match=r"3\.9.*upgrade"):
        expand(shop(), (3, 9))


def test_reading_a_topology_does_not_load_celery_or_kombu() -> None:
    """Declaring and expanding a topology needs neither Celery nor an AMQP client."""
    code = (
        "import sys, unlost.topology.expand, unlost.topology.plan, unlost.cli; "
        "sys.exit(str({'celery', 'kombu', 'amqp', 'httpx'} & set(sys.modules)) if "
        "{'celery', 'kombu', 'amqp', 'httpx'} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
