"""What rules look at: objects, what policies make of them, and what each queue is for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from types import MappingProxyType

from unlost.topology import naming
from unlost.topology.effective import Effect, Rules, effect_on, settings_of
from unlost.topology.model import Topology
from unlost.topology.objects import (
    Binding,
    BrokerObject,
    Exchange,
    OperatorPolicy,
    Permission,
    Policy,
    Queue,
    User,
    Value,
)
from unlost.topology.queue_forms import OpenQueue

_NO_LIMITS: Mapping[str, timedelta] = MappingProxyType({})
_DELIVERY = "_delayed_delivery"
_SECTIONS = {
    "queue": ("objects", "queues"),
    "exchange": ("objects", "exchanges"),
    "policy": ("objects", "policies"),
    "operator policy": ("objects", "operator_policies"),
    "user": ("objects", "users"),
    "permission": ("objects", "permissions"),
}


class World:
    """Everything that a rule may ask.

    Args:
        objects: All objects, as declared or as live.
        version: Major and minor version of the broker.
        topology: Where they were declared, if they were.
        nodes: How many nodes the cluster has, if that is known.
        hard_limits: Hard time limit of the slowest task, per queue.
    """

    def __init__(
        self,
        objects: Iterable[BrokerObject],
        version: tuple[int, int],
        topology: Topology | None = None,
        *,
        nodes: int | None = None,
        hard_limits: Mapping[str, timedelta] = _NO_LIMITS,
    ) -> None:
        everything = tuple(objects)
        self.version = version
        self.nodes = nodes
        self.queues = [each for each in everything if isinstance(each, Queue)]
        self.exchanges = [each for each in everything if isinstance(each, Exchange)]
        self.bindings = [each for each in everything if isinstance(each, Binding)]
        self.policies = [each for each in everything if isinstance(each, Policy)]
        self.operator_policies = [each for each in everything if isinstance(each, OperatorPolicy)]
        self.users = [each for each in everything if isinstance(each, User)]
        self.permissions = [each for each in everything if isinstance(each, Permission)]
        self._topology = topology
        self._rules = Rules(self.policies), Rules(self.operator_policies)
        self._exchange = {each.name: each for each in self.exchanges}
        self._queue = {each.name: each for each in self.queues}
        self._from: dict[str, list[Binding]] = defaultdict(list)
        for binding in self.bindings:
            self._from[binding.source].append(binding)
        self.settings = {each.name: self._settings(each) for each in self.queues}
        self.hard_limits = {**self._declared_limits(), **hard_limits}
        self._letters = frozenset(self._find_letters())

    def where(self, each: BrokerObject) -> str | None:
        """Return ``file:line`` of an object's declaration, or of what it follows from."""
        if self._topology is None:
            return None
        if each.kind == "queue" and each.key in self._topology.queues:
            return self._topology.where("queues", each.key)
        if isinstance(each, Binding):
            return self._topology.where("objects", "bindings", *self._index_of(each))
        return self._topology.where(*_SECTIONS.get(each.kind, ()), each.key)

    def effect(self, each: Exchange | Queue) -> Effect:
        """Return what policies make of an object."""
        return effect_on(each, *self._rules)

    def policies_on(self, each: Exchange | Queue) -> list[Policy]:
        """Return all user policies that match an object, the effective one first."""
        return self._rules[0].matching(each)

    def exchange(self, name: object) -> Exchange | None:
        """Return an exchange by name."""
        return self._exchange.get(str(name))

    def queue(self, name: str) -> Queue | None:
        """Return a queue by name."""
        return self._queue.get(name)

    def bindings_from(self, exchange: str) -> list[Binding]:
        """Return the bindings of an exchange."""
        return self._from.get(exchange, [])

    def alternate_of(self, exchange: Exchange) -> Value:
        """Return the alternate exchange in effect, or ``None``."""
        argument = exchange.arguments.get("alternate-exchange")
        return (
            argument if argument is not None else self.effect(exchange).definition.get("alternate-exchange")
        )

    def is_letters(self, queue: Queue) -> bool:
        """Tell whether letters end in a queue: behind a DLX or an alternate exchange, with no own DLX."""
        return queue.name in self._letters

    def is_work(self, queue: Queue) -> bool:
        """Tell whether workers of the application consume a queue."""
        return self._topology is not None and queue.name in self._topology.queues

    def has_ledger(self, queue: Queue) -> bool:
        """Tell whether the tasks of a work queue are counted by the ledger."""
        return self._topology is not None and (
            queue.name in self._topology.queues and not self._topology.queues[queue.name].without_store
        )

    def is_delay_level(self, queue: Queue) -> bool:
        """Tell whether a queue is a level of a delay path."""
        stem, _, level = queue.name.rpartition("_")
        return level.isdigit() and stem.endswith("celery_delayed")

    def is_open(self, queue: Queue) -> bool:
        """Tell whether a queue leaves its type to the vhost's default."""
        if self._topology is None or self._topology.objects is None:
            return "x-queue-type" not in queue.arguments
        return isinstance(self._topology.objects.queues.get(queue.name), OpenQueue)

    @property
    def application_exchange(self) -> str | None:
        """Return the name of the exchange that the application publishes to."""
        return self._topology.exchange if self._topology and self._topology.name else None

    def delay_targets(self) -> Iterator[tuple[Binding, Queue]]:
        """Yield the queues at the end of a delay path, with the binding that brings them there."""
        for binding in self.bindings:
            queue = self._queue.get(binding.destination)
            if binding.source.endswith(_DELIVERY) and binding.destination_type == "queue" and queue:
                yield binding, queue

    def broker_exchanges(self) -> Iterator[Exchange]:
        """Yield the exchanges that the broker publishes to: dead-letter exchanges and delay paths."""
        for exchange in self.exchanges:
            if exchange.name in self._dead_letter_exchanges() | self._delay_exchanges():
                yield exchange

    def _dead_letter_exchanges(self) -> set[str]:
        named = (settings.get("dead-letter-exchange") for settings in self.settings.values())
        own = (
            {naming.dead_letter_exchange_of(self._topology.name)}
            if self._topology and self._topology.name
            else set()
        )
        return own | {str(name) for name in named if name is not None}

    def _delay_exchanges(self) -> set[str]:
        if self._topology is None or not self._topology.name:
            return {each.name for each in self.exchanges if each.name.endswith(_DELIVERY)}
        name = self._topology.name
        levels = naming.delay_levels(name, self._topology.delay.levels)
        return {naming.delay_delivery_exchange(name), *levels}

    def _settings(self, queue: Queue) -> dict[str, Value]:
        return settings_of(queue, self.effect(queue).definition)

    def _declared_limits(self) -> dict[str, timedelta]:
        queues = {} if self._topology is None else self._topology.queues
        return {
            name: queue.hard_time_limit for name, queue in queues.items() if queue.hard_time_limit is not None
        }

    def _find_letters(self) -> Iterator[str]:
        alternates = {str(name) for each in self.exchanges if (name := self.alternate_of(each)) is not None}
        todo, seen = list(self._dead_letter_exchanges() | alternates), set[str]()
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            for binding in self.bindings_from(name):
                if binding.destination_type == "exchange":
                    todo.append(binding.destination)
                elif self.settings.get(binding.destination, {}).get("dead-letter-exchange") is None:
                    yield binding.destination

    def _index_of(self, binding: Binding) -> tuple[str, ...]:
        forms = self._topology.objects.bindings if self._topology and self._topology.objects else ()
        for index, form in enumerate(forms):
            if (form.source, form.destination, form.routing_key) == (
                binding.source,
                binding.destination,
                binding.routing_key,
            ):
                return (str(index),)
        return ()
