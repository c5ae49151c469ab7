"""A migration as values: its steps and what takes them back, and whether all messages are still there.

:mod:`unlost.topology.migration_plan` makes the steps, :mod:`unlost.broker.migrate` takes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from unlost.errors import TopologyError
from unlost.topology.objects import Binding, BrokerObject, Exchange, Policy, Queue


class Do(StrEnum):
    """What a step does."""

    PUT_POLICY = "create policy"
    CREATE = "create"
    AWAIT_CONSUMERS = "wait for consumers of"
    BIND = "bind"
    UNBIND = "unbind"
    DRAIN = "move messages of"
    AWAIT_DELAYED = "wait for delayed messages for"
    AWAIT_RELEASE = "wait until nobody consumes"
    DELETE = "delete"
    DELETE_POLICY = "delete policy"


#: What must be true before a step, and what it leaves true: shown by a dry run.
CONDITIONS: Mapping[Do, str] = {
    Do.PUT_POLICY: "no other policy of that name",
    Do.CREATE: "nothing of that name",
    Do.AWAIT_CONSUMERS: "workers consume the new queue, so that nothing waits in it unworked",
    Do.BIND: "both ends exist; until the old route goes, a message on it is routed to both",
    Do.UNBIND: "the same route leads to the other queue",
    Do.DRAIN: "no route leads here; each message is confirmed there before it is acked here; ends when "
    "nothing is ready, unacknowledged, waiting for a retry or pending as a dead letter",
    Do.AWAIT_DELAYED: "the delay path holds no message, so none is addressed to the old name",
    Do.AWAIT_RELEASE: "its workers have been restarted without it",
    Do.DELETE: "no route, no message, no consumer",
    Do.DELETE_POLICY: "the queue that it was made for is gone",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step.

    Attributes:
        do: What it does.
        object: The queue, exchange, binding or policy that it is about.
        other: For :attr:`Do.DRAIN` and :attr:`Do.DELETE` of a queue, where its messages go.
        hop: Steps of one hop are taken back together.
    """

    do: Do
    object: BrokerObject
    other: str = ""
    hop: int = 0

    def __str__(self) -> str:
        to = f" to {self.other}" if self.do is Do.DRAIN else ""
        kind = "" if self.object.kind in ("policy", "binding") else f"{self.object.kind} "
        return f"{self.do} {kind}{self.object.key}{to}"

    @property
    def condition(self) -> str:
        """Return what must hold before it is taken, or what it waits for."""
        return CONDITIONS[self.do]

    def inverse(self) -> Step | None:
        """Return what takes it back; ``None`` for one that only waits."""
        match self.do:
            case Do.PUT_POLICY | Do.BIND | Do.UNBIND:
                return replace(self, do=_INVERSE[self.do])
            case Do.CREATE:
                return replace(self, do=Do.DELETE)
            case Do.DELETE:
                return replace(self, do=Do.CREATE, other="")
            case Do.DRAIN:
                return replace(self, object=Queue(name=self.other), other=self.object.key)
            case _:
                return None


_INVERSE = {Do.PUT_POLICY: Do.DELETE_POLICY, Do.BIND: Do.UNBIND, Do.UNBIND: Do.BIND}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps of a migration.

    Attributes:
        source: The queue or exchange that is replaced.
        target: What replaces it.
        steps: In order.
        last: Index of the first step that is taken only on the operator's word: the wait for the release
            and the deletion at the end. Until then there is a way back.
        hops: Names of the old and the new queue, once for each time that everything moves; none for an
            exchange, which holds nothing.
        notes: What an operator should know before saying yes.
    """

    source: str
    target: str
    steps: tuple[Step, ...]
    last: int
    hops: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the vhost holds.

    Attributes:
        version: Major and minor version of the broker.
        objects: All exchanges, queues, bindings and policies.
    """

    version: tuple[int, int]
    objects: tuple[BrokerObject, ...]

    def queue(self, name: str) -> Queue | None:
        """Return a queue by name."""
        return next((each for each in self.objects if isinstance(each, Queue) and each.name == name), None)

    def exchange(self, name: str) -> Exchange | None:
        """Return an exchange by name."""
        return next((each for each in self.objects if isinstance(each, Exchange) and each.name == name), None)

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """Return all bindings."""
        return tuple(each for each in self.objects if isinstance(each, Binding))

    @property
    def policies(self) -> tuple[Policy, ...]:
        """Return all policies."""
        return tuple(each for each in self.objects if isinstance(each, Policy))

    def policy_of(self, queue: Queue) -> Policy | None:
        """Return the policy in effect for a queue: the matching one of the highest priority."""
        kinds = {"all", "queues", f"{queue_type_of(queue)}_queues"}
        matching = [
            each for each in self.policies if each.apply_to in kinds and re.search(each.pattern, queue.name)
        ]
        return max(matching, key=lambda each: each.priority, default=None)

    def after(self, steps: Iterable[Step]) -> Facts:
        """Return the facts once these steps have been taken."""
        objects = list(self.objects)
        for step in steps:
            if step.do in (Do.PUT_POLICY, Do.CREATE, Do.BIND):
                objects.append(step.object)
            elif step.do in (Do.UNBIND, Do.DELETE, Do.DELETE_POLICY):
                objects = [each for each in objects if each != step.object and not _is_route_of(each, step)]
        return replace(self, objects=tuple(objects))


def queue_type_of(queue: Queue) -> str:
    """Return a queue's type; one that does not say is classic."""
    return str(queue.arguments.get("x-queue-type", "classic"))


def way_back(plan: Plan, begun: int) -> tuple[Step, ...]:
    """Return the steps that undo the first ``begun`` steps of a plan.

    Routes are switched back first, bound before unbound; then the messages are moved back, then what was
    made for the migration is deleted. Hop by hop, the last one first.

    Raises:
        TopologyError: The last step has begun: there is no way back, only another migration.
    """
    if begun >= len(plan.steps):
        raise TopologyError(
            f"{plan.source!r} may be deleted already, so there is no way back; "
            f"go on, and then migrate {plan.target!r} to {plan.source!r} if need be"
        )
    taken = plan.steps[:begun]
    hops = sorted({step.hop for step in taken}, reverse=True)
    return tuple(
        step
        for hop in hops
        for step in _hop_back([s for s in taken if s.hop == hop], plan.hops[hop] if plan.hops else None)
    )


def _hop_back(taken: list[Step], queues: tuple[str, str] | None) -> Iterator[Step]:
    undone = [inverse for step in reversed(taken) if (inverse := step.inverse())]
    made = [step for step in undone if step.do is Do.DELETE]
    yield from (step for step in undone if step.do is Do.CREATE)
    yield from (step for step in undone if step.do in (Do.BIND, Do.UNBIND))
    if queues is not None:
        old, new = queues
        if any(step.do is Do.BIND for step in taken):
            # Also when no route was switched: what is bound to the new queue may hold messages.
            yield Step(do=Do.DRAIN, object=Queue(name=new), other=old, hop=taken[0].hop)
        yield from (replace(step, do=Do.AWAIT_RELEASE) for step in made)
        made = [replace(step, other=old) for step in made]
    yield from made
    yield from (step for step in undone if step.do is Do.DELETE_POLICY)


def _is_route_of(candidate: BrokerObject, step: Step) -> bool:
    """Whether a route goes with the queue or exchange that a step deletes."""
    if step.do is not Do.DELETE or not isinstance(candidate, Binding):
        return False
    return step.object.key in (candidate.source, candidate.destination)


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What was in both queues at one time.

    Attributes:
        source: Ready messages in the old queue.
        target: Ready messages in the new queue.
        consumers: Consumers of either that are not the migration's own.
        transient: Whether either drops messages by itself (a TTL).
    """

    source: int
    target: int
    consumers: int
    transient: bool = False


class Conserved(StrEnum):
    """Whether all messages are still there."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "cannot tell: consumers took messages, or a TTL did"


def judge(before: Count, looks: Iterable[Count]) -> Conserved:
    """Judge by the first look at the queues that shows all messages, else by the last one.

    A broker under load may still count a consumer that has gone, the migration's own too, and a busy quorum
    queue as empty.

    Args:
        before: What was in the queues before anything was moved.
        looks: Counts from behind the move, one after the other; at least one.
    """
    verdict = Conserved.UNKNOWN
    for after in looks:
        verdict = conserved(before, after)
        if verdict is Conserved.YES or before.consumers or before.transient:
            break
    return verdict


def conserved(before: Count, after: Count) -> Conserved:
    """Judge by the totals: the new queue must have gained at least what the old one lost.

    More is no contradiction: publishers add to it, and a window of messages may be moved twice. Where
    others consume, the totals prove nothing; there each message counts that was confirmed before it was
    acked, which is the rule of the move itself.
    """
    if before.consumers or after.consumers or before.transient or after.transient:
        return Conserved.UNKNOWN
    enough = after.target - before.target >= before.source - after.source
    return Conserved.YES if enough else Conserved.NO
