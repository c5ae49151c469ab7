"""Rules about queues themselves, the cluster and its users."""

from __future__ import annotations

from collections.abc import Iterator

from unlost.topology.lint.rule import Rule, Severity
from unlost.topology.lint.world import World
from unlost.topology.objects import BrokerObject, Queue

_NOT_ON_QUORUM = ("x-max-priority", "x-queue-mode", "x-queue-version", "x-queue-master-locator")
_GROUP_SIZES = ("quorum-initial-group-size", "quorum-target-group-size", "target-group-size")
_GUEST = "guest"


def _not_on_quorum(world: World) -> Iterator[tuple[Queue, str]]:
    for queue in world.queues:
        if queue.type != "quorum":
            continue
        for argument in _NOT_ON_QUORUM:
            if argument in queue.arguments:
                yield queue, f"a quorum queue with {argument}"
        if queue.auto_delete:
            yield queue, "a quorum queue that is auto-delete"
        if not queue.durable:
            yield queue, "a quorum queue that is exclusive or not durable"


def _open_type(world: World) -> Iterator[tuple[Queue, str]]:
    for queue in world.queues:
        if world.is_open(queue):
            yield queue, "its type is the vhost's default"


def _transient(world: World) -> Iterator[tuple[Queue, str]]:
    for queue in world.queues:
        if not queue.durable and queue.type == "classic":
            yield queue, "it is not durable"


def _deprecated(world: World) -> Iterator[tuple[Queue, str]]:
    for queue in world.queues:
        if queue.type == "classic":
            if "x-queue-mode" in queue.arguments:
                yield queue, "x-queue-mode has no effect since 3.12"
            if queue.arguments.get("x-queue-version") == 1:
                yield queue, "classic queues of version 1 are gone since 4.3"


def _guest(world: World) -> Iterator[tuple[BrokerObject, str]]:
    for user in world.users:
        if user.name == _GUEST:
            yield user, "the default user"
    for permission in world.permissions:
        if permission.user == _GUEST:
            yield permission, "permissions for the default user"


def _even(world: World) -> Iterator[tuple[Queue, str]]:
    for queue in world.queues:
        arguments = {name.removeprefix("x-"): value for name, value in queue.arguments.items()}
        sizes = {**world.settings[queue.name], **arguments}
        for key in _GROUP_SIZES:
            size = sizes.get(key)
            if isinstance(size, int) and size % 2 == 0:
                yield queue, f"{key} {size}"
    replicated = [queue for queue in world.queues if queue.type != "classic"]
    if world.nodes is not None and world.nodes % 2 == 0 and replicated:
        yield replicated[0], f"a cluster of {world.nodes} nodes"


RULES = (
    Rule(
        "not-on-quorum",
        Severity.ERROR,
        "a quorum queue with max-priority, exclusive, auto-delete or other things of classic queues",
        "The broker refuses the queue: what is published to it is returned or dropped.",
        "Remove it. Since 4.3 quorum queues have priorities without an argument.",
        _not_on_quorum,
    ),
    Rule(
        "type-left-open",
        Severity.WARNING,
        "a queue whose type is left to the vhost's default",
        "One vhost makes it replicated, the next does not, and all defaults change with the type: delivery "
        "limit, what a restart leaves. When the vhost's default changes, no client can declare it any more.",
        "Write `type: quorum`.",
        _open_type,
    ),
    Rule(
        "transient-queue",
        Severity.ERROR,
        "a queue that is not durable",
        "It is gone with everything in it when its node restarts; brokers since 4.3 can refuse it.",
        "Make it durable, or let the one client that needs it declare it exclusive.",
        _transient,
    ),
    Rule(
        "argument-deprecated",
        Severity.WARNING,
        "an argument that newer brokers ignore or refuse",
        "Nothing now; the upgrade of the broker fails or drops the queue.",
        "Remove it, which takes a new queue.",
        _deprecated,
        since=(4, 0),
    ),
    Rule(
        "default-guest",
        Severity.WARNING,
        "the default user guest",
        "Everybody knows its password: anybody who reaches the broker can read, forge and purge tasks.",
        "Delete it; give each application a user of its own.",
        _guest,
    ),
    Rule(
        "even-cluster",
        Severity.WARNING,
        "an even number of nodes or members",
        "One more node is needed for a majority and no more failures are survived: two halves of a partition "
        "both stop.",
        "Use 3, 5 or 7.",
        _even,
    ),
)
