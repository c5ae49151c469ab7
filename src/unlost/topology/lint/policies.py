"""Rules about policies: which one is in effect, and whether the broker takes it at all."""

from __future__ import annotations

from collections.abc import Iterator

from unlost.topology.lint.rule import Rule, Severity
from unlost.topology.lint.world import World
from unlost.topology.objects import Exchange, OperatorPolicy, Policy, Queue

# Found by setting each on 3.10, 4.0 and 4.3, and in the release notes.
_SINCE = {
    "consumer-timeout": (3, 12),
    "target-group-size": (3, 13),
    "consumer-disconnected-timeout": (4, 3),
    "delayed-retry-type": (4, 3),
    "delayed-retry-min": (4, 3),
    "delayed-retry-max": (4, 3),
}
_GONE = {
    "ha-mode": (4, 0),
    "ha-params": (4, 0),
    "ha-sync-mode": (4, 0),
    "queue-master-locator": (4, 3),
}
_TYPED_SINCE = (3, 12)
_UNLIMITED_SINCE = (4, 0)


def _tied(world: World) -> Iterator[tuple[Queue | Exchange, str]]:
    objects: list[Queue | Exchange] = [*world.queues, *world.exchanges]
    for each in objects:
        tied = world.effect(each).tied
        if tied:
            yield each, f"policies {', '.join(tied)} match it with equal priority"


def _never_matches(world: World) -> Iterator[tuple[Policy, str]]:
    objects: list[Queue | Exchange] = [*world.queues, *world.exchanges]
    used = {policy.name for each in objects for policy in world.policies_on(each)}
    for policy in world.policies:
        if policy.name in used:
            continue
        yield policy, _why_never(policy, world)


def _why_never(policy: Policy, world: World) -> str:
    for queue in world.queues:
        foreign = policy.inapplicable_keys(queue.type)
        if foreign and policy.matches(queue.name):
            return (
                f"{min(foreign)} keeps it from {queue.type} queue {queue.name!r}, which its pattern matches"
            )
    return f"nothing that is declared matches {policy.pattern!r} among {policy.apply_to}"


def _other_version(world: World) -> Iterator[tuple[Policy | OperatorPolicy, str]]:
    for policy in _both(world):
        if policy.apply_to not in ("all", "queues", "exchanges") and world.version < _TYPED_SINCE:
            yield policy, f"apply_to {policy.apply_to} is known since 3.12"
        for key, value in policy.definition.items():
            if world.version < _SINCE.get(key, (0, 0)):
                yield policy, f"{key} is known since {_dotted(_SINCE[key])}"
            elif key in _GONE and world.version >= _GONE[key]:
                yield policy, f"{key} is gone since {_dotted(_GONE[key])}"
            elif key == "delivery-limit" and value == -1 and world.version < _UNLIMITED_SINCE:
                yield policy, "a delivery-limit of -1 is known since 4.0"


def _unanchored(world: World) -> Iterator[tuple[Policy | OperatorPolicy, str]]:
    for policy in _both(world):
        if not policy.pattern.startswith("^"):
            yield policy, f"pattern {policy.pattern!r} also matches in the middle of names"


def _both(world: World) -> Iterator[Policy | OperatorPolicy]:
    yield from world.policies
    yield from world.operator_policies


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(str(part) for part in version)


RULES = (
    Rule(
        "policies-tied",
        Severity.ERROR,
        "two policies of equal priority on one object",
        "Only one policy is in effect, and which one is chance: the dead-letter exchange may be that of "
        "neither queue nor operator after a restart.",
        "Give them different priorities, or patterns that do not overlap.",
        _tied,
    ),
    Rule(
        "policy-never-matches",
        Severity.WARNING,
        "a policy that is never in effect",
        "What it is there to protect is not protected. One key that a queue type does not know keeps the "
        "whole policy from its queues.",
        "Correct pattern, apply_to and keys, or remove it.",
        _never_matches,
    ),
    Rule(
        "policy-other-version",
        Severity.ERROR,
        "a policy that this version of the broker refuses",
        "The broker refuses the whole policy, so nothing of it is in effect; before 3.12 a consumer timeout "
        "can only be set in rabbitmq.conf.",
        "Remove the key, or upgrade the broker.",
        _other_version,
    ),
    Rule(
        "pattern-unanchored",
        Severity.INFO,
        "a pattern that does not begin with ^",
        "It also governs objects whose names contain it, and takes the place of their own policy.",
        "Anchor it: ^shop[.]stock$.",
        _unanchored,
    ),
)
