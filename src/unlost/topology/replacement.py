"""What replaces a queue: the new queue's arguments and the policy it needs.

All that a policy can say moves from the arguments into a policy, so that it can be changed next time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from unlost.errors import TopologyError
from unlost.topology import naming
from unlost.topology.migration import Facts, queue_type_of
from unlost.topology.objects import Policy, Queue, Value

#: Arguments that no policy can set, so that they stay arguments.
_IMMUTABLE = ("x-single-active-consumer", "x-quorum-initial-group-size")
_CLASSIC_ONLY = ("x-max-priority",)
#: Arguments and policy keys with no meaning for a quorum queue, and those that RabbitMQ 4 has dropped.
_DROPPED = frozenset(
    {"queue-type", "queue-mode", "queue-version", "queue-master-locator", "max-priority", "expires"}
)
_UNLIMITED_SINCE = (4, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueChange:
    """What shall replace a queue.

    Attributes:
        source: The queue as it is called now.
        target: The new queue's name; the source's own to rebuild it under its name, in two hops.
        type: ``quorum`` or ``classic``.
        arguments: Further arguments of the new queue; ``x-…`` as the broker spells them.
        await_consumers: Switch no route before somebody consumes the new queue.
        retire: Unbind the old name's routes in the end, once no delayed message is addressed to it.
            Otherwise they stay and lead to the new queue.
    """

    source: str
    target: str
    type: str = "quorum"
    arguments: Mapping[str, Value] = field(default_factory=dict)
    await_consumers: bool = True
    retire: bool = False


def movable(name: str, facts: Facts) -> Queue:
    """Return a queue that can be emptied by moving what is inside.

    Raises:
        TopologyError: It does not exist, goes with its last consumer, or is not emptied by reading.
    """
    queue = facts.queue(name)
    if queue is None:
        near = ", ".join(sorted(each.name for each in facts.objects if isinstance(each, Queue))[:10])
        raise TopologyError(f"there is no queue {name!r} to migrate; the vhost has: {near or 'none'}")
    if queue.auto_delete:
        raise TopologyError(
            f"queue {name!r} is auto-delete: it would go, with what is inside, as soon as its last consumer "
            "leaves; let its consumers empty it"
        )
    if queue_type_of(queue) not in ("classic", "quorum"):
        raise TopologyError(f"queue {name!r} is a {queue_type_of(queue)}: reading it does not empty it")
    return queue


def build(change: QueueChange, facts: Facts) -> tuple[Queue, Policy | None]:
    """Return the new queue, and the policy it needs if none that is there says the same.

    Raises:
        TopologyError: As for :func:`movable`.
    """
    source = movable(change.source, facts)
    kept = (*_IMMUTABLE, *(_CLASSIC_ONLY if change.type == "classic" else ()))
    arguments: dict[str, Value] = {"x-queue-type": change.type}
    arguments |= {name: source.arguments[name] for name in kept if name in source.arguments}
    queue = Queue(name=change.target, arguments=arguments | dict(change.arguments))
    definition = _definition(source, facts, change.type)
    governing = facts.policy_of(queue)
    if not definition or (governing is not None and governing.definition == definition):
        return queue, None
    return queue, Policy(
        name=_free_policy_name(change.target, facts),
        pattern=f"^{re.escape(change.target)}$",
        apply_to="queues",
        definition=definition,
        priority=max(100, governing.priority + 1 if governing else 0),
    )


def _definition(source: Queue, facts: Facts, queue_type: str) -> dict[str, Value]:
    """Return what the source's arguments and policy say, as the policy of a queue of the given type.

    Where both say something the argument counts, as the broker has it for dead lettering; limits would
    count by the smaller one, but nobody sets them twice on purpose.
    """
    policy = facts.policy_of(source)
    said: dict[str, Value] = dict(policy.definition) if policy else {}
    said |= {
        name.removeprefix("x-"): value
        for name, value in source.arguments.items()
        if name not in (*_IMMUTABLE, *_CLASSIC_ONLY) and name.startswith("x-")
    }
    kept = {k: v for k, v in said.items() if k not in _DROPPED and not k.startswith("ha-")}
    if "dead-letter-exchange" in kept and "dead-letter-routing-key" not in kept:
        kept["dead-letter-routing-key"] = _key_of_letters(source, facts)
    return _for_quorum(kept, facts.version) if queue_type == "quorum" else kept


def _key_of_letters(source: Queue, facts: Facts) -> str:
    """Return the key that dead letters had so far: that of their message.

    A message that is moved comes by the default exchange, with the new queue's name as its key. Dead-lettered
    under that, it would miss its dead-letter queue.

    Raises:
        TopologyError: They had more than one.
    """
    keys = {
        each.routing_key
        for each in facts.bindings
        if each.destination_type == "queue" and each.destination == source.name
    }
    words = {word for key in keys for word in key.split(".")}
    if len(keys) != 1 or {"*", "#"} & words:
        raise TopologyError(
            f"queue {source.name!r} has a dead-letter exchange and no dead-letter-routing-key, and several "
            "routing keys lead to it: set a dead-letter-routing-key in its policy first, because messages "
            "that are moved have another routing key"
        )
    return keys.pop()


def _for_quorum(said: Mapping[str, Value], version: tuple[int, int]) -> dict[str, Value]:
    """Add what keeps a quorum queue from losing what a classic one would have kept.

    Its default delivery limit of 20 drops the message of a worker that was killed 21 times
    (https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling). At-least-once dead lettering
    needs reject-publish, and a length limit without it drops the oldest message.
    """
    definition = dict(said)
    if "dead-letter-exchange" in said:
        definition["dead-letter-strategy"] = "at-least-once"
    if {"dead-letter-exchange", "max-length", "max-length-bytes"} & said.keys():
        definition["overflow"] = "reject-publish"
    if "delivery-limit" not in said and version >= _UNLIMITED_SINCE:
        definition["delivery-limit"] = -1
    return definition


def _free_policy_name(queue: str, facts: Facts) -> str:
    taken = {each.name for each in facts.policies}
    name = naming.queue_policy_of(queue)
    while name in taken:
        name = f"{name}:migrated"
    return name


def check_existing(existing: Queue, change: QueueChange, facts: Facts) -> None:
    """Refuse a new queue that is there already and is not what is wanted, or would drop messages.

    Raises:
        TopologyError: It is.
    """
    if queue_type_of(existing) != change.type:
        raise TopologyError(
            f"queue {existing.name!r} exists and is a {queue_type_of(existing)} queue, not {change.type}; "
            "choose another name, or delete it"
        )
    differing = {k: v for k, v in change.arguments.items() if existing.arguments.get(k) != v}
    if differing:
        raise TopologyError(f"queue {existing.name!r} exists without {differing}; choose another name")
    policy = facts.policy_of(existing)
    said = {**(policy.definition if policy else {}), **_unprefixed(existing.arguments)}
    if "dead-letter-exchange" in said and "dead-letter-routing-key" not in said:
        raise TopologyError(
            f"queue {existing.name!r} has a dead-letter exchange and no dead-letter-routing-key: set one in "
            "its policy first, because messages that are moved have another routing key"
        )
    limited = {"max-length", "max-length-bytes"} & said.keys()
    if limited and said.get("overflow") != "reject-publish":
        raise TopologyError(
            f"queue {existing.name!r} drops its oldest message beyond its {'/'.join(sorted(limited))}: "
            "set overflow=reject-publish in its policy first"
        )


def _unprefixed(arguments: Mapping[str, Value]) -> dict[str, Value]:
    return {name.removeprefix("x-"): value for name, value in arguments.items()}


def notes_of(change: QueueChange, source: Queue, facts: Facts) -> Iterator[str]:
    """Yield what an operator should know before a queue is replaced."""
    policy = facts.policy_of(source)
    said = {**(policy.definition if policy else {}), **_unprefixed(source.arguments)}
    yield "while a route leads to both queues its messages come twice; idempotent tasks absorb that"
    yield f"what is published to the default exchange under {change.source!r} cannot be switched: stop that"
    if "message-ttl" in said:
        yield f"the message TTL of {said['message-ttl']} ms begins anew for each message that is moved"
    if "expires" in said:
        yield "x-expires is not carried over: it deletes a queue with what is inside"
    if "max-priority" in said and change.type == "quorum":
        yield "x-max-priority has no counterpart: quorum queues order by priority from RabbitMQ 4.0 on only"
    if said.get("overflow") not in (None, "reject-publish") or (
        {"max-length", "max-length-bytes"} & said.keys() and "overflow" not in said
    ):
        yield "beyond its length limit the new queue refuses publishes instead of dropping messages"
    if facts.version < _UNLIMITED_SINCE:
        yield "x-death headers are dropped: this broker takes them for its own when a client sends them"
