"""From a declared topology to everything that must exist on the broker.

Queue arguments hold only what a policy cannot say; the rest is exactly one policy per queue, because
RabbitMQ applies one policy per object (https://www.rabbitmq.com/docs/policies). Policy patterns are
anchored and escaped: ``^shop_celery_delayed_2$`` does not match level 20.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import TypeVar

from unlost.errors import TopologyError
from unlost.topology import naming
from unlost.topology.full_form import Objects
from unlost.topology.model import Topology, WorkQueue
from unlost.topology.objects import (
    ApplyTo,
    Binding,
    BrokerObject,
    Exchange,
    OperatorPolicy,
    Policy,
    Queue,
    Value,
)
from unlost.topology.order import in_safe_order
from unlost.topology.unfold import routing_of, surroundings_of

Version = tuple[int, int]

OLDEST_VERSION: Version = (3, 10)
# Above the priority of the catch-all policies that operators keep at 0; they can still go higher.
POLICY_PRIORITY = 100

_CONSUMER_TIMEOUT_SINCE: Version = (3, 12)
_UNLIMITED_SINCE: Version = (4, 0)
_DELAYED_RETRY_SINCE: Version = (4, 3)
_LIMIT_WITHOUT_STORE = 100
# Spaces out the redeliveries of a crash. Short, because it also holds back the messages that were merely
# prefetched beside the one that crashed.
_DELAYED_RETRY: dict[str, Value] = {
    "delayed-retry-type": "failed",
    "delayed-retry-min": 500,
    "delayed-retry-max": 2000,
}
# At-least-once needs reject-publish, else RabbitMQ silently falls back to at-most-once
# (https://www.rabbitmq.com/docs/quorum-queues#activating-at-least-once-dead-lettering).
_AT_LEAST_ONCE: dict[str, Value] = {
    "dead-letter-strategy": "at-least-once",
    "overflow": "reject-publish",
}

_NO_SECRETS: Mapping[str, str] = MappingProxyType({})

_Kind = TypeVar("_Kind", Exchange, Queue, Binding, Policy, OperatorPolicy)


@dataclass(frozen=True, slots=True)
class Expanded:
    """Everything a topology needs on the broker.

    Attributes:
        objects: In an order that is safe to apply and to stop within: an object's policy comes before it,
            and whatever it hands messages to comes before both. So no queue ever exists without its
            policy, and no dead letter is ever without a queue to go to.
        owns: Regular expressions of the names that belong to the topology, declared or not.
    """

    objects: tuple[BrokerObject, ...]
    owns: tuple[str, ...] = ()

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """Return the exchanges, in order."""
        return self._of(Exchange)

    @property
    def queues(self) -> tuple[Queue, ...]:
        """Return the queues, in order."""
        return self._of(Queue)

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """Return the bindings, in order."""
        return self._of(Binding)

    @property
    def policies(self) -> tuple[Policy, ...]:
        """Return the policies, in order."""
        return self._of(Policy)

    @property
    def operator_policies(self) -> tuple[OperatorPolicy, ...]:
        """Return the operator policies, in order."""
        return self._of(OperatorPolicy)

    def policy_of(self, governed: Exchange | Queue) -> Policy | None:
        """Return the policy that governs an exchange or queue; ``None`` for one that has none of ours."""
        matching = [policy for policy in self.policies if policy.governs(governed)]
        return max(matching, key=lambda policy: policy.priority, default=None)

    def _of(self, kind: type[_Kind]) -> tuple[_Kind, ...]:
        return tuple(each for each in self.objects if isinstance(each, kind))


def expand(topology: Topology, version: Version, secrets: Mapping[str, str] = _NO_SECRETS) -> Expanded:
    """Return everything that must exist on a broker of the given version.

    Args:
        topology: What is declared.
        version: Major and minor version of RabbitMQ; newer policy keys are left out where the broker would
            refuse them. That goes for what follows from the short form; the full form says what it says.
        secrets: Passwords of declared users, by the environment variable that holds them.

    Raises:
        TopologyError: The broker is too old to dead-letter without loss.
    """
    if version < OLDEST_VERSION:
        raise TopologyError(
            f"RabbitMQ {dotted(version)} cannot dead-letter at least once; "
            f"upgrade it to {dotted(OLDEST_VERSION)} or newer (4.3 is the reference)"
        )
    objects = topology.objects or Objects()
    application = tuple(_application(topology, version)) if topology.has_application else ()
    routing = tuple(routing_of(objects))
    return Expanded(
        (
            *surroundings_of(objects, secrets),
            *application,
            *in_safe_order(routing, present=application),
        ),
        owns=topology.owns,
    )


def _application(topology: Topology, version: Version) -> Iterator[BrokerObject]:
    """Yield what follows from the short form."""
    yield from _unroutable(topology, version)
    yield from _dead_letters(topology, version)
    yield from _delay_path(topology)
    yield from _work_queues(topology, version)
    yield from _application_exchange(topology)


def _unroutable(topology: Topology, version: Version) -> Iterator[BrokerObject]:
    exchange = naming.unroutable_exchange_of(topology.name)
    queue = naming.unroutable_queue_of(topology.name)
    yield Exchange(name=exchange, type="fanout")
    yield from _keeping_queue(queue, version)
    yield Binding(source=exchange, destination=queue)


def _dead_letters(topology: Topology, version: Version) -> Iterator[BrokerObject]:
    exchange = naming.dead_letter_exchange_of(topology.name)
    yield _policy(
        naming.exchange_policy_of(exchange), re.escape(exchange), "exchanges", _to_unroutable(topology)
    )
    yield Exchange(name=exchange)
    for queue in topology.queues:
        letters = naming.dead_letter_queue_of(queue)
        yield from _keeping_queue(letters, version)
        yield Binding(source=exchange, destination=letters, routing_key=queue)


def _keeping_queue(name: str, version: Version) -> Iterator[BrokerObject]:
    """Yield a queue that nothing ever leaves by itself: no TTL, no length limit, no delivery limit.

    Merely looking counts as a delivery: under the default limit of 20 the 21st look deletes a letter. If an
    operator policy sets a length limit all the same, the newest letter is refused, and stays where it was,
    instead of the oldest being dropped.
    """
    yield _queue_policy(name, {"overflow": "reject-publish", **_unlimited(version)})
    yield _quorum_queue(name)


def _delay_path(topology: Topology) -> Iterator[BrokerObject]:
    """Yield the delay path from its end to its entry, so that each level finds the next one in place.

    Exchanges, queues and binding keys are those of kombu's native delayed delivery. Its alternate
    exchange is ours: a message whose queue is not bound would else hold one of the 32 places of level
    0's dead-letter worker for ever, and 32 of them would stop every other queue's delays.
    """
    prefix = topology.name
    exchanges = rf"{re.escape(prefix)}_celery_delayed_([0-9]+|delivery)"
    name = naming.delay_exchanges_policy_of(prefix)
    yield _policy(name, exchanges, "exchanges", _to_unroutable(topology))
    yield Exchange(name=naming.delay_delivery_exchange(prefix))
    for level in range(topology.delay.levels):
        yield from _delay_level(prefix, level, topology.delay.levels)


def _delay_level(prefix: str, level: int, levels: int) -> Iterator[BrokerObject]:
    """Yield one level: bit 1 waits in its queue and is dead-lettered to the next level, bit 0 passes on."""
    name = naming.delay_level(prefix, level)
    following = naming.delay_level(prefix, level - 1) if level else naming.delay_delivery_exchange(prefix)
    earlier_bits = "*." * (levels - 1 - level)
    ttl_ms = 2**level * 1000
    yield Exchange(name=name)
    yield _queue_policy(name, {"message-ttl": ttl_ms, "dead-letter-exchange": following, **_AT_LEAST_ONCE})
    yield _quorum_queue(name)
    yield Binding(source=name, destination=name, routing_key=f"{earlier_bits}1.#")
    yield Binding(
        source=name, destination=following, destination_type="exchange", routing_key=f"{earlier_bits}0.#"
    )


def _work_queues(topology: Topology, version: Version) -> Iterator[BrokerObject]:
    delivery = naming.delay_delivery_exchange(topology.name)
    for name, queue in topology.queues.items():
        yield _queue_policy(name, _work_settings(topology.name, name, queue, version))
        yield _quorum_queue(name, single_active_consumer=queue.single_active_consumer)
        yield Binding(source=delivery, destination=name, routing_key=f"#.{naming.delay_target(name)}")


def _work_settings(topology: str, name: str, queue: WorkQueue, version: Version) -> dict[str, Value]:
    settings: dict[str, Value] = {
        "dead-letter-exchange": naming.dead_letter_exchange_of(topology),
        # Else the letter of a message that came through the delay path keeps that path's key and misses
        # its dead-letter queue.
        "dead-letter-routing-key": name,
        **_AT_LEAST_ONCE,
    }
    settings |= {"delivery-limit": _LIMIT_WITHOUT_STORE} if queue.without_store else _unlimited(version)
    if queue.consumer_timeout is not None and version >= _CONSUMER_TIMEOUT_SINCE:
        settings["consumer-timeout"] = queue.consumer_timeout // timedelta(milliseconds=1)
    if version >= _DELAYED_RETRY_SINCE:
        settings |= _DELAYED_RETRY
    return settings


def _application_exchange(topology: Topology) -> Iterator[BrokerObject]:
    """Yield the exchange that applications publish to, last and with no alternate exchange.

    With one, a mandatory publish of an unroutable message would be confirmed and never returned.
    """
    yield Exchange(name=topology.exchange)
    for queue in topology.queues:
        yield Binding(source=topology.exchange, destination=queue, routing_key=queue)


def _unlimited(version: Version) -> dict[str, Value]:
    """Return the setting for no delivery limit; before 4.0 there is none unless set."""
    return {"delivery-limit": -1} if version >= _UNLIMITED_SINCE else {}


def _to_unroutable(topology: Topology) -> dict[str, Value]:
    return {"alternate-exchange": naming.unroutable_exchange_of(topology.name)}


def _quorum_queue(name: str, *, single_active_consumer: bool = False) -> Queue:
    arguments: dict[str, Value] = {"x-queue-type": "quorum"}
    if single_active_consumer:
        arguments["x-single-active-consumer"] = True
    return Queue(name=name, arguments=arguments)


def _queue_policy(queue: str, definition: dict[str, Value]) -> Policy:
    return _policy(naming.queue_policy_of(queue), re.escape(queue), "queues", definition)


def _policy(name: str, pattern: str, apply_to: ApplyTo, definition: dict[str, Value]) -> Policy:
    return Policy(
        name=name, pattern=f"^{pattern}$", apply_to=apply_to, definition=definition, priority=POLICY_PRIORITY
    )


def dotted(version: Version) -> str:
    """Return a version as people write it."""
    return ".".join(str(part) for part in version)
