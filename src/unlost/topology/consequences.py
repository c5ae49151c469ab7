"""What a plan does to queues that exist: which of its steps can cost messages, and what overrules it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from unlost.topology.effective import Effect, Rules, effect_on, settings_of
from unlost.topology.objects import (
    BrokerObject,
    Exchange,
    OperatorPolicy,
    Policy,
    Queue,
    Value,
    identity,
)

_REJECTING = "reject-publish"


@dataclass(frozen=True, slots=True)
class Risk:
    """Messages that a step can cost.

    Attributes:
        queue: Where they are.
        loss: How they are lost, in one sentence.
        pending_only: Only dead letters that wait for their confirm are in danger, not every message.
    """

    queue: str
    loss: str
    pending_only: bool = False


def losses(before: Mapping[str, Value], after: Mapping[str, Value]) -> Iterator[tuple[str, bool]]:
    """Yield how a queue loses messages when its settings change, and whether only pending letters are lost.

    Args:
        before: Settings in effect, as policies name them.
        after: Settings in effect afterwards.
    """
    letters = after.get("dead-letter-exchange") is not None
    if before.get("dead-letter-exchange") is not None and not letters:
        yield "it loses its dead-letter exchange: pending and future dead letters are dropped", True
    elif _at_least_once(before) and not _at_least_once(after):
        yield "it leaves at-least-once dead-lettering: pending dead letters are deleted", True
    if _lowered("expires", before, after):
        yield "the queue expires when unused, and nothing dead-letters its messages", False
    if _lowered("message-ttl", before, after) and not letters:
        yield "messages expire, and there is no dead-letter exchange", False
    if after.get("overflow") != _REJECTING and not letters:
        for key in ("max-length", "max-length-bytes"):
            if _lowered(key, before, after):
                yield f"{key} drops the oldest messages, and there is no dead-letter exchange", False
    if _limits_deliveries(before, after) and not letters:
        yield "messages over the delivery limit are dropped, and there is no dead-letter exchange", False


class Consequences:
    """Compares what is in effect on every queue before and after a plan.

    Args:
        before: Everything that is live.
        after: Everything that is live once the plan has been carried out.
        wanted: Everything that is declared.
    """

    def __init__(
        self,
        before: Iterable[BrokerObject],
        after: Iterable[BrokerObject],
        wanted: Iterable[BrokerObject],
    ) -> None:
        live, then, declared = tuple(before), tuple(after), tuple(wanted)
        self._declared = [each for each in declared if isinstance(each, Exchange | Queue)]
        self._after = _Effects(then)
        self._wanted = _Effects(declared)
        self._there = {identity(each): each for each in then}
        self._risks = dict(self._risks_by_rule(live, _Effects(live)))

    def risks_of(self, changed: BrokerObject, *, deletes: bool) -> Iterator[Risk]:
        """Yield the messages that a change of one object can cost."""
        if deletes and isinstance(changed, Queue):
            yield Risk(changed.name, "the queue is deleted with everything in it")
        yield from self._risks.get(identity(changed), ())

    def overruled(self) -> Iterator[tuple[Exchange | Queue, tuple[str, ...]]]:
        """Yield declared objects on which something that is not declared is in effect, and why."""
        for each in self._declared:
            wanted, found = self._wanted.of(each), self._after.of(each)
            reasons = tuple(_overruling(wanted, found))
            if reasons:
                yield each, reasons

    def _risks_by_rule(
        self, live: Iterable[BrokerObject], before: _Effects
    ) -> Iterator[tuple[tuple[str, str], tuple[Risk, ...]]]:
        """Yield the risks on existing queues, by the policy that brings them."""
        by_rule: dict[tuple[str, str], list[Risk]] = {}
        for queue in live:
            if not isinstance(queue, Queue) or identity(queue) not in self._there:
                continue
            was, will = before.of(queue), self._after.of(queue)
            if was == will:
                continue
            found = losses(settings_of(queue, was.definition), settings_of(queue, will.definition))
            for loss, pending_only in found:
                for rule in _changed_rules(was, will):
                    by_rule.setdefault(identity(rule), []).append(Risk(queue.name, loss, pending_only))
        return iter((key, tuple(risks)) for key, risks in by_rule.items())


class _Effects:
    """What a set of policies makes of any object."""

    def __init__(self, objects: tuple[BrokerObject, ...]) -> None:
        self._policies = Rules(each for each in objects if isinstance(each, Policy))
        self._operators = Rules(each for each in objects if isinstance(each, OperatorPolicy))

    def of(self, each: Exchange | Queue) -> Effect:
        """Return the effect on one object."""
        return effect_on(each, self._policies, self._operators)


def _changed_rules(was: Effect, will: Effect) -> Iterator[Policy | OperatorPolicy]:
    """Yield the policies that differ between two effects; both of a pair of which one takes over."""
    pairs = ((was.policy, will.policy), (was.operator_policy, will.operator_policy))
    for one, other in pairs:
        if one != other:
            yield from (rule for rule in (one, other) if rule is not None)


def _overruling(wanted: Effect, found: Effect) -> Iterator[str]:
    if wanted.policy is None:
        yield from _unasked(found)
    elif found.policy is not None and found.policy.name != wanted.policy.name:
        yield (
            f"governed by policy {found.policy.name!r} of priority {found.policy.priority} instead of "
            f"{wanted.policy.name!r}: give that one a priority below {wanted.policy.priority}, "
            "or a pattern that does not match"
        )
    elif found.tied:
        yield (
            f"policies {', '.join(found.tied)} share the highest priority: which one is in effect is chance; "
            "give them different priorities"
        )
    if found.operator_policy is not None and found.operator_policy != wanted.operator_policy:
        yield from _guarded(found.operator_policy, wanted.definition, found.definition)


def _unasked(found: Effect) -> Iterator[str]:
    """Yield what a policy that nobody declared does to an object that is declared without one."""
    if found.policy is not None:
        for key, value in found.policy.definition.items():
            if key == "alternate-exchange" or _dangerous(key, value):
                yield f"policy {found.policy.name!r}, which is not declared, sets {key} to {value!r}"


def _guarded(rule: OperatorPolicy, wanted: Mapping[str, Value], found: Mapping[str, Value]) -> Iterator[str]:
    """Yield what an operator policy changes of what is declared."""
    for key, value in rule.definition.items():
        declared, merged = wanted.get(key), found.get(key)
        if (declared is not None and merged != declared) or (declared is None and _dangerous(key, value)):
            yield (
                f"operator policy {rule.name!r} makes {key} {merged!r} instead of "
                f"{'nothing' if declared is None else repr(declared)}: ask the broker's operator"
            )


def _dangerous(key: str, value: Value) -> bool:
    """Tell whether a setting alone can cost messages of a queue that did not ask for it."""
    return key in ("expires", "message-ttl") or (key == "delivery-limit" and value != -1)


def _at_least_once(settings: Mapping[str, Value]) -> bool:
    """Tell whether dead letters are kept until they are confirmed; it takes all three."""
    return (
        settings.get("dead-letter-exchange") is not None
        and settings.get("dead-letter-strategy") == "at-least-once"
        and settings.get("overflow") == _REJECTING
    )


def _lowered(key: str, before: Mapping[str, Value], after: Mapping[str, Value]) -> bool:
    was, will = before.get(key), after.get(key)
    if not isinstance(will, int):
        return False
    return not isinstance(was, int) or will < was


def _limits_deliveries(before: Mapping[str, Value], after: Mapping[str, Value]) -> bool:
    was, will = before.get("delivery-limit"), after.get("delivery-limit")
    if not isinstance(will, int) or will < 0:
        return False
    return not isinstance(was, int) or was < 0 or will < was
