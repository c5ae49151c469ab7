"""From what a broker has and what shall replace it to the steps of a migration.

RabbitMQ cannot change a queue's type, its arguments or its name, nor an exchange's type. So a new one is
made beside the old one, the routes are switched, what is left inside is moved, and the old one is deleted
last.

Each route is bound to the new queue before it is unbound from the old one: in between, a message is routed
to both, so it may come twice. The other order would lose it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from unlost.errors import TopologyError
from unlost.topology import naming
from unlost.topology.migration import Do, Facts, Plan, Step
from unlost.topology.objects import Binding, BrokerObject, Exchange, Queue
from unlost.topology.replacement import (
    QueueChange,
    build,
    check_existing,
    movable,
    notes_of,
)

#: Ends the name of the queue that holds everything while the old name is rebuilt.
MOVING = ".moving"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeChange:
    """What shall replace an exchange: one of another name, with the same routes."""

    source: str
    target: str
    type: str = "topic"


def successor_name(queue: str) -> str:
    """Return the default name of what replaces a queue: ``q.v2`` after ``q``, ``q.v3`` after ``q.v2``."""
    stem, found, number = queue.rpartition(".v")
    return f"{stem}.v{int(number) + 1}" if found and number.isdecimal() else f"{queue}.v2"


def plan_queue(change: QueueChange, facts: Facts) -> Plan:
    """Return the steps that replace a queue.

    Raises:
        TopologyError: It does not exist or cannot be moved, or the new queue could lose what is moved there.
    """
    source = movable(change.source, facts)
    if change.target == change.source:
        return _rebuild(change, source, facts)
    naming.check_queue_name(change.target)
    hop = _Hop(change, facts, own_keys=True)
    steps = [*hop.switch(), *(hop.retire() if change.retire else ()), *hop.remove()]
    return Plan(
        source=change.source,
        target=change.target,
        steps=tuple(steps),
        last=len(steps) - 2,
        hops=((change.source, change.target),),
        notes=tuple(notes_of(change, source, facts)),
    )


def plan_exchange(change: ExchangeChange, facts: Facts) -> Plan:
    """Return the steps that replace an exchange.

    A message goes through one of the two, so none is doubled; and both route alike until the old one is
    deleted, so publishers can be switched one after the other. Where an exchange leads to both, the broker
    still puts one copy into each queue.

    Raises:
        TopologyError: It does not exist, or its routes would mean something else in the new type.
    """
    source = facts.exchange(change.source)
    if source is None or not change.source or change.source.startswith("amq."):
        raise TopologyError(f"there is no exchange {change.source!r} that could be replaced")
    if change.target == change.source:
        raise TopologyError(
            f"an exchange cannot be rebuilt in place: choose another name than {change.source!r}"
        )
    naming.check_exchange_name(change.target)
    _check_types(source, change.type, facts)
    target = replace(source, name=change.target, type=change.type)
    existing = facts.exchange(change.target)
    if existing is not None and existing != target:
        raise TopologyError(f"exchange {change.target!r} exists and is built otherwise; choose another name")
    create = () if existing else (Step(do=Do.CREATE, object=target),)
    routes = _routes_of(source.name, target.name, facts)
    steps = (
        *create,
        *(Step(do=Do.BIND, object=route) for route in routes if route not in facts.bindings),
        Step(do=Do.DELETE, object=source, other=target.name),
    )
    note = f"switch every publisher from {source.name!r} to {target.name!r} before the last step"
    return Plan(source=source.name, target=target.name, steps=steps, last=len(steps) - 1, notes=(note,))


@dataclass(frozen=True, slots=True)
class _Hop:
    """One move of everything from a queue to another one.

    Args:
        change: From where to where.
        facts: Before the hop.
        own_keys: Also bind the new queue by its own name wherever the old one is bound by its own.
        number: Which hop of the plan it is.
    """

    change: QueueChange
    facts: Facts
    own_keys: bool
    number: int = 0

    def switch(self) -> Iterator[Step]:
        """Make the new queue, switch each route, move what is inside."""
        source, target = self.change.source, self.change.target
        yield from self._make()
        if self.change.await_consumers:
            yield self._step(Do.AWAIT_CONSUMERS, Queue(name=target))
        if self.own_keys:
            renamed = (route for old in self._old_routes() if (route := self._renamed(old)))
            yield from self._bind(renamed)
        for old in self._old_routes():
            yield from self._bind([replace(old, destination=target)])
            yield self._step(Do.UNBIND, old)
        yield self._step(Do.DRAIN, Queue(name=source), other=target)

    def retire(self) -> Iterator[Step]:
        """Unbind the old name's routes from the new queue once nothing delayed is addressed to it."""
        named = [old for old in self._old_routes() if self._renamed(old)]
        for prefix in sorted({prefix for old in named if (prefix := delay_prefix_of(old.source))}):
            yield self._step(Do.AWAIT_DELAYED, Queue(name=self.change.source), other=prefix)
        for old in named:
            yield self._step(Do.UNBIND, replace(old, destination=self.change.target))

    def remove(self) -> Iterator[Step]:
        """Delete the old queue."""
        source = self.facts.queue(self.change.source)
        if source is not None:
            yield self._step(Do.AWAIT_RELEASE, source)
            yield self._step(Do.DELETE, source, other=self.change.target)

    def _make(self) -> Iterator[Step]:
        existing = self.facts.queue(self.change.target)
        if existing is not None:
            check_existing(existing, self.change, self.facts)
            return
        wanted, policy = build(self.change, self.facts)
        if policy is not None:
            yield self._step(Do.PUT_POLICY, policy)
        yield self._step(Do.CREATE, wanted)

    def _old_routes(self) -> list[Binding]:
        found = [
            each
            for each in self.facts.bindings
            if each.destination_type == "queue" and each.destination == self.change.source and each.source
        ]
        return sorted(found, key=lambda each: each.key)

    def _renamed(self, old: Binding) -> Binding | None:
        """Return the new queue's own route where the old one is a route by name."""
        source, target = self.change.source, self.change.target
        if old.routing_key == source:
            return replace(old, destination=target, routing_key=target)
        if old.routing_key == f"#.{naming.delay_target(source)}":
            return replace(old, destination=target, routing_key=f"#.{naming.delay_target(target)}")
        return None

    def _bind(self, routes: Iterable[Binding]) -> Iterator[Step]:
        return (self._step(Do.BIND, each) for each in routes if each not in self.facts.bindings)

    def _step(self, do: Do, about: BrokerObject, other: str = "") -> Step:
        return Step(do=do, object=about, other=other, hop=self.number)


def delay_prefix_of(exchange: str) -> str | None:
    """Return the prefix of the delay path that ends in an exchange, ``None`` if none does."""
    prefix = exchange.removesuffix(naming.delay_delivery_exchange(""))
    return prefix if prefix and prefix != exchange else None


def _rebuild(change: QueueChange, source: Queue, facts: Facts) -> Plan:
    """Return two hops: everything out to a queue for the time being, then back into the rebuilt one."""
    aside = f"{source.name}{MOVING}"
    out = _Hop(replace(change, target=aside), facts, own_keys=False, number=0)
    first = [*out.switch(), *out.remove()]
    back = replace(change, source=aside, target=source.name)
    then = _Hop(back, facts.after(first), own_keys=False, number=1)
    steps = [*first, *then.switch(), *then.remove()]
    return Plan(
        source=source.name,
        target=source.name,
        steps=tuple(steps),
        last=len(steps) - 2,
        hops=((source.name, aside), (aside, source.name)),
        notes=(
            f"{source.name!r} is deleted in the middle; until it is rebuilt, workers must consume {aside!r}",
            *notes_of(change, source, facts),
        ),
    )


def _check_types(source: Exchange, wanted: str, facts: Facts) -> None:
    if source.type != wanted and (source.type, wanted) != ("direct", "topic"):
        raise TopologyError(
            f"exchange {source.name!r} is {source.type}: its routes would not mean the same in a {wanted} one"
        )
    keys = [each.routing_key for each in facts.bindings if each.source == source.name]
    patterns = [key for key in keys if {"*", "#"} & set(key.split("."))]
    if source.type != wanted and patterns:
        raise TopologyError(
            f"routing key {patterns[0]!r} of exchange {source.name!r} would be a pattern in a topic exchange"
        )


def _routes_of(source: str, target: str, facts: Facts) -> Iterator[Binding]:
    for each in sorted(facts.bindings, key=lambda each: each.key):
        if each.source == source:
            yield replace(each, source=target)
        if each.destination_type == "exchange" and each.destination == source:
            yield replace(each, destination=target)
