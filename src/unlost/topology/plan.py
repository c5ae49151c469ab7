"""The difference between what a topology needs and what a broker has, as steps in a safe order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from unlost.errors import DeclarationConflict, TopologyError
from unlost.topology import naming
from unlost.topology.expand import Expanded
from unlost.topology.model import Topology
from unlost.topology.objects import Binding, BrokerObject, Exchange, Policy, Queue


class Action(StrEnum):
    """What a step does to an object."""

    CREATE = "create"
    UPDATE = "update"


@dataclass(frozen=True, slots=True)
class Step:
    """One change to the broker.

    Attributes:
        action: Whether the object is new; only a policy can be updated.
        object: What it will be afterwards.
    """

    action: Action
    object: BrokerObject

    def __str__(self) -> str:
        return f"{self.action} {self.object.kind} {self.object.key}"


def plan(expanded: Expanded, present: Iterable[BrokerObject]) -> tuple[Step, ...]:
    """Return the steps from what is present to what is needed, in the order in which to take them.

    What is present and not needed is left alone.

    Raises:
        DeclarationConflict: Exchanges or queues exist with properties that cannot be changed.
    """
    by_key = {(each.kind, each.key): each for each in present if not _has_binding_arguments(each)}
    steps, conflicts = [], []
    for needed in expanded.objects:
        found = by_key.get((needed.kind, needed.key))
        if found is None:
            steps.append(Step(Action.CREATE, needed))
        elif found != needed:
            if isinstance(needed, Policy):
                steps.append(Step(Action.UPDATE, needed))
            else:
                conflicts.append(_conflict(needed, found))
    if conflicts:
        raise DeclarationConflict("; ".join(conflicts))
    return tuple(steps)


def refuse_other_levels(topology: Topology, expanded: Expanded, present: Iterable[BrokerObject]) -> None:
    """Refuse a delay path that was built for another number of levels.

    Its binding keys count the bits of a routing key from the left. Those of two different lengths side by
    side would send one message two ways, which delivers it twice, or hold it for the wrong time.

    Raises:
        TopologyError: A level has bindings that this topology does not declare.
    """
    levels = set(naming.delay_levels(topology.name, topology.delay.levels))
    needed = {binding.key for binding in expanded.bindings}
    stale = sorted(
        each.key
        for each in present
        if isinstance(each, Binding) and each.source in levels and each.key not in needed
    )
    if stale:
        raise TopologyError(
            f"the delay path of {topology.name!r} has bindings that do not belong to "
            f"{topology.delay.levels} levels ({stale[0]} and {len(stale) - 1} more): restore the former "
            "delay.levels, or let the delay queues run empty and delete the delay exchanges first"
        )


def _has_binding_arguments(each: BrokerObject) -> bool:
    return isinstance(each, Binding) and bool(each.arguments)


def _conflict(needed: Exchange | Queue | Binding, found: BrokerObject) -> str:
    differing = "; ".join(
        f"{name} is {ours!r} in the topology but {getattr(found, name)!r} on the broker"
        for name in needed.__dataclass_fields__
        if (ours := getattr(needed, name)) != getattr(found, name)
    )
    return f"{needed.kind} {needed.key!r}: {differing}. {_way_out(needed)}"


def _way_out(needed: Exchange | Queue | Binding) -> str:
    if isinstance(needed, Queue):
        return "This cannot be changed: stop its consumers, drain and delete the queue, then apply again"
    return "This cannot be changed: delete the exchange while nobody publishes to it, then apply again"
