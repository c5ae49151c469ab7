"""The difference between what is declared, what is live, and what is in effect, as steps in a safe order.

Pure: it reads values and returns values, so what it says can be tested without a broker.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from unlost.errors import DeclarationConflict, TopologyError
from unlost.topology import naming
from unlost.topology.consequences import Consequences, Risk
from unlost.topology.expand import Expanded
from unlost.topology.model import Topology
from unlost.topology.objects import (
    Binding,
    BrokerObject,
    Exchange,
    OperatorPolicy,
    Policy,
    Queue,
    differences,
    identity,
)


class Action(StrEnum):
    """The class of a change."""

    CREATE = "create"
    UPDATE = "update in place"
    UNBIND = "unbind"
    IMMUTABLE = "immutable"
    DESTRUCTIVE = "destructive"
    OVERRULED = "overruled"
    UNMANAGED = "unmanaged"


# What apply does without a flag, with one, and never.
_FREE = frozenset({Action.CREATE, Action.UPDATE})
_TELLS_ONLY = frozenset({Action.OVERRULED, Action.UNMANAGED})


@dataclass(frozen=True, slots=True)
class Step:
    """One difference between a topology and a broker.

    Attributes:
        action: Its class.
        object: What it will be afterwards; for what is not declared, what it is.
        before: What it is now; ``None`` if it is not there.
        deletes: It will not be there afterwards.
        reasons: Why, one sentence each.
        risks: What messages it can cost, and on which queues.
    """

    action: Action
    object: BrokerObject
    before: BrokerObject | None = None
    deletes: bool = False
    reasons: tuple[str, ...] = ()
    risks: tuple[Risk, ...] = ()

    def __str__(self) -> str:
        verb = "delete" if self.deletes and self.action is not Action.UNBIND else self.action
        return f"{verb} {self.object.kind} {self.object.key}".rstrip()


@dataclass(frozen=True, slots=True)
class Live:
    """What a broker has, as far as a plan needs to know.

    Attributes:
        objects: All objects of the vhost that could be read.
        unread: Kinds that could not be read, and why; nothing is said about them.
    """

    objects: tuple[BrokerObject, ...]
    unread: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do about the difference between a topology and a broker.

    Attributes:
        steps: Every difference, in the order in which apply would take it; what apply never does is last.
        unchanged: How many declared objects are there as declared.
        unread: Kinds of which nothing could be read, and why.
    """

    steps: tuple[Step, ...]
    unchanged: int = 0
    unread: Mapping[str, str] = field(default_factory=dict)

    @property
    def drift(self) -> tuple[Step, ...]:
        """Return the steps that say the broker is not as declared; others' objects are no drift."""
        return tuple(step for step in self.steps if step.action is not Action.UNMANAGED)

    def of(self, *actions: Action) -> tuple[Step, ...]:
        """Return the steps of some classes."""
        return tuple(step for step in self.steps if step.action in actions)

    def allowed(self, *, unbind: bool = False, destroy: bool = False) -> tuple[Step, ...]:
        """Return the steps that may be taken, in order."""
        actions = (
            _FREE | ({Action.UNBIND} if unbind else set()) | ({Action.DESTRUCTIVE} if destroy else set())
        )
        return self.of(*actions)

    def withheld(self, *, unbind: bool = False, destroy: bool = False) -> tuple[Step, ...]:
        """Return the steps that need a flag which was not given."""
        taken = self.allowed(unbind=unbind, destroy=destroy)
        return tuple(step for step in self.of(Action.UNBIND, Action.DESTRUCTIVE) if step not in taken)

    def refuse_immutable(self) -> None:
        """Refuse the whole plan if anything in it cannot be changed where it is.

        Raises:
            DeclarationConflict: Names each such object, both sides and the way out.
        """
        conflicts = [_conflict(step) for step in self.of(Action.IMMUTABLE)]
        if conflicts:
            raise DeclarationConflict("; ".join(conflicts))


def plan(expanded: Expanded, live: Live | Iterable[BrokerObject]) -> Plan:
    """Return the steps from what is live to what is declared, in the order in which to take them.

    Args:
        expanded: What is declared.
        live: What is there, or just its objects.
    """
    there = live if isinstance(live, Live) else Live(tuple(live))
    present = {identity(each): each for each in there.objects}
    changed = list(_changed(expanded, present, there.unread))
    surplus = list(_surplus(expanded, there))
    consequences = Consequences(
        before=there.objects,
        after=_afterwards(there.objects, changed, [step for step in surplus if step.deletes]),
        wanted=expanded.objects,
    )
    steps = [_weighed(step, consequences) for step in (*changed, *surplus)]
    overruled = [
        Step(Action.OVERRULED, each, each, reasons=reasons) for each, reasons in consequences.overruled()
    ]
    known = {identity(each) for each in expanded.objects if each.kind not in there.unread}
    touched = {identity(step.object) for step in changed}
    return Plan(
        tuple(sorted((*steps, *overruled), key=_rank)), unchanged=len(known - touched), unread=there.unread
    )


def refuse_other_levels(topology: Topology, expanded: Expanded, present: Iterable[BrokerObject]) -> None:
    """Refuse a delay path that was built for another number of levels.

    Its binding keys count the bits of a routing key from the left. Those of two different lengths side by
    side would send one message two ways, which delivers it twice, or hold it for the wrong time.

    Raises:
        TopologyError: A level has bindings that this topology does not declare.
    """
    if not topology.has_application:
        return
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


def _rank(step: Step) -> int:
    """Order steps: routes are added before others are taken away; a sort keeps the order within a rank."""
    if step.action in _TELLS_ONLY:
        return 9
    if not step.deletes:
        return 0
    return {"binding": 1, "exchange": 2, "queue": 3}.get(step.object.kind, 4)


def _changed(
    expanded: Expanded, present: Mapping[tuple[str, str], BrokerObject], unread: Mapping[str, str]
) -> Iterator[Step]:
    for needed in expanded.objects:
        if needed.kind in unread:
            continue
        found = present.get(identity(needed))
        if found is None:
            yield Step(Action.CREATE, needed, reasons=("it is not there",))
            continue
        differing = differences(needed, found)
        if differing:
            fixed = isinstance(needed, Exchange | Queue | Binding)
            yield Step(
                Action.IMMUTABLE if fixed else Action.UPDATE,
                needed,
                found,
                reasons=tuple(_reason(*each) for each in differing),
            )


def _reason(name: str, declared: object, live: object) -> str:
    if declared is None:
        return f"{name}: {live!r} -> not set"
    return f"{name}: {'not set' if live is None else repr(live)} -> {declared!r}"


def _surplus(expanded: Expanded, live: Live) -> Iterator[Step]:
    """Yield what is there and not declared."""
    declared = {identity(each) for each in expanded.objects}
    kinds = {each.kind for each in expanded.objects}
    named = _Named(expanded)
    for each in live.objects:
        if identity(each) in declared:
            continue
        if isinstance(each, Binding):
            yield from _surplus_binding(each, named)
        elif isinstance(each, Exchange | Queue | Policy):
            yield from _surplus_object(each, named)
        elif each.kind in kinds or isinstance(each, OperatorPolicy):
            yield Step(Action.UNMANAGED, each, each, reasons=("it is not declared",))


def _surplus_binding(each: Binding, named: _Named) -> Iterator[Step]:
    ends = (
        named.is_ours("exchange", each.source),
        named.is_ours(each.destination_type, each.destination),
    )
    if all(ends):
        reason = "both of its ends are declared, it is not: messages take a way that nobody declared"
        yield Step(Action.UNBIND, each, each, deletes=True, reasons=(reason,))
    elif any(ends):
        yield Step(Action.UNMANAGED, each, each, reasons=("it touches a declared object",))


def _surplus_object(each: Exchange | Queue | Policy, named: _Named) -> Iterator[Step]:
    if named.is_owned(each.name):
        reason = "'owns' matches its name, and it is not declared"
        yield Step(Action.DESTRUCTIVE, each, each, deletes=True, reasons=(reason,))
    else:
        yield Step(Action.UNMANAGED, each, each, reasons=("it is not declared",))


class _Named:
    """Which names belong to a topology."""

    def __init__(self, expanded: Expanded) -> None:
        self._declared = {identity(each) for each in expanded.objects if isinstance(each, Exchange | Queue)}
        self._owns = [re.compile(pattern) for pattern in expanded.owns]

    def is_owned(self, name: str) -> bool:
        """Tell whether ``owns`` matches a name."""
        return any(pattern.fullmatch(name) for pattern in self._owns)

    def is_ours(self, kind: str, name: str) -> bool:
        """Tell whether an exchange or queue is declared or owned."""
        return (kind, name) in self._declared or self.is_owned(name)


def _afterwards(
    before: Iterable[BrokerObject], changed: Iterable[Step], deleted: Iterable[Step]
) -> tuple[BrokerObject, ...]:
    """Return what is there when every step has been taken."""
    after = {identity(each): each for each in before}
    after |= {identity(step.object): step.object for step in changed if step.action is not Action.IMMUTABLE}
    for step in deleted:
        after.pop(identity(step.object), None)
    return tuple(after.values())


def _weighed(step: Step, consequences: Consequences) -> Step:
    """Return a step with what it can cost; one that costs messages is destructive."""
    if step.action in _TELLS_ONLY or step.action is Action.IMMUTABLE:
        return step
    risks = tuple(consequences.risks_of(step.object, deletes=step.deletes))
    if not risks:
        return step
    action = step.action if step.action is Action.UNBIND else Action.DESTRUCTIVE
    return Step(action, step.object, step.before, step.deletes, step.reasons, risks)


def _conflict(step: Step) -> str:
    needed, found = step.object, step.before
    differing = "; ".join(
        f"{name.removeprefix('arguments.')} is {ours!r} in the topology but {theirs!r} on the broker"
        for name, ours, theirs in differences(needed, found or needed)
    )
    return f"{needed.kind} {needed.key!r}: {differing}. {_way_out(needed)}"


def _way_out(needed: BrokerObject) -> str:
    if isinstance(needed, Queue):
        return (
            "This cannot be changed in place: migrate the queue, or stop its consumers, drain and delete it, "
            "then apply again"
        )
    return "This cannot be changed in place: delete it while nobody publishes to it, then apply again"
