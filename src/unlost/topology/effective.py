"""Which settings are in effect on an object: user and operator policy, merged as the broker merges them.

One user policy and one operator policy at most are in effect on an object: of those that match, the one
of the highest priority that holds no key foreign to the queue's type. Where both set a key, the stricter
value wins for limits, the greater one for the size of a group, and the operator's for the rest. Found by
setting every key in both on 4.3, and as ``rabbit_policies.erl`` says.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from unlost.topology.objects import Exchange, OperatorPolicy, Policy, Queue, Value

_Any = TypeVar("_Any", Policy, OperatorPolicy)

_STRICTER = frozenset(
    {
        "expires",
        "max-in-memory-bytes",
        "max-in-memory-length",
        "max-length",
        "max-length-bytes",
        "message-ttl",
    }
)
# Arguments that the broker compares with a policy: the stricter one counts.
_STRICTER_ARGUMENTS = _STRICTER | {
    "consumer-disconnected-timeout",
    "consumer-timeout",
    "delayed-retry-max",
    "delayed-retry-min",
}
_POLICY_WINS_ON_QUORUM = frozenset({"delayed-retry-type", "overflow", "queue-leader-locator"})
DEFAULT_DELIVERY_LIMIT = 20


class Rules(Generic[_Any]):
    """Policies of one kind, found by the object they govern.

    Patterns that are one anchored name, as ours are, are looked up; others are tried one by one.
    """

    def __init__(self, rules: Iterable[_Any]) -> None:
        self._literal: dict[str, list[_Any]] = defaultdict(list)
        self._others: list[_Any] = []
        for rule in rules:
            name = _literal_name(rule.pattern)
            (self._others if name is None else self._literal[name]).append(rule)

    def matching(self, candidate: Exchange | Queue) -> list[_Any]:
        """Return all that can be in effect on an object, the one that is first.

        Which one that is among equal priorities is chance; here it is the first by name, so that the
        answer is always the same.
        """
        tried = [*self._literal.get(candidate.name, ()), *self._others]
        found = [rule for rule in tried if rule.governs(candidate)]
        return sorted(found, key=lambda rule: (-rule.priority, rule.name))


@dataclass(frozen=True, slots=True)
class Effect:
    """What policies make of one object.

    Attributes:
        policy: The user policy in effect.
        operator_policy: The operator policy in effect.
        definition: Both, merged; what the broker shows as ``effective_policy_definition``.
        tied: Names of user policies that share the highest priority; which one is in effect is chance.
    """

    policy: Policy | None
    operator_policy: OperatorPolicy | None
    definition: Mapping[str, Value]
    tied: tuple[str, ...] = ()


def effect_on(
    candidate: Exchange | Queue, policies: Rules[Policy], operators: Rules[OperatorPolicy]
) -> Effect:
    """Return what policies make of an exchange or queue."""
    users, guards = policies.matching(candidate), operators.matching(candidate)
    policy = users[0] if users else None
    guard = guards[0] if guards else None
    tied = tuple(each.name for each in users if policy is not None and each.priority == policy.priority)
    merged = merge(policy.definition if policy else {}, guard.definition if guard else {})
    return Effect(policy, guard, merged, tied if len(tied) > 1 else ())


def merge(policy: Mapping[str, Value], operator: Mapping[str, Value]) -> dict[str, Value]:
    """Return the settings of a user and an operator policy, merged."""
    both = policy.keys() & operator.keys()
    return {**policy, **operator, **{key: _merged(key, policy[key], operator[key]) for key in both}}


def settings_of(queue: Queue, definition: Mapping[str, Value]) -> dict[str, Value]:
    """Return the settings in effect on a queue: its arguments and the merged policies together.

    Keys are those of policies. Which side wins is said per key by
    ``rabbit_quorum_queue:gather_policy_config`` and ``rabbit_queue_type_util:args_policy_lookup``.
    """
    arguments = {name.removeprefix("x-"): value for name, value in queue.arguments.items()}
    both = arguments.keys() & definition.keys()
    return {**definition, **arguments, **{key: _resolved(queue, key, arguments, definition) for key in both}}


def _resolved(
    queue: Queue, key: str, arguments: Mapping[str, Value], definition: Mapping[str, Value]
) -> Value:
    argument, policy = arguments[key], definition[key]
    if key in _STRICTER_ARGUMENTS:
        return _least(argument, policy)
    if key == "delivery-limit":
        return _delivery_limit(argument, policy)
    return policy if queue.type == "quorum" and key in _POLICY_WINS_ON_QUORUM else argument


def _merged(key: str, policy: Value, operator: Value) -> Value:
    if key in _STRICTER:
        return _least(policy, operator)
    if key == "delivery-limit":
        return _delivery_limit(policy, operator)
    if key == "target-group-size" and isinstance(policy, int) and isinstance(operator, int):
        return max(policy, operator)
    return operator


def _least(one: Any, other: Any) -> Value:
    return min(one, other) if isinstance(one, int) and isinstance(other, int) else other


def _delivery_limit(one: Any, other: Any) -> Value:
    """Return the lower limit, but any limit rather than none: a negative one is none."""
    if not (isinstance(one, int) and isinstance(other, int)):
        return other  # type: ignore[no-any-return]
    return max(one, other) if min(one, other) < 0 else min(one, other)


def _literal_name(pattern: str) -> str | None:
    """Return the one name that a pattern such as ``^shop\\.stock$`` matches; ``None`` if it is no such."""
    if not (pattern.startswith("^") and pattern.endswith("$")):
        return None
    name = re.sub(r"\\(.)", r"\1", pattern[1:-1])
    return name if re.escape(name) == pattern[1:-1] else None
