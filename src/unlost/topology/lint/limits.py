"""Rules about what a queue does when it is full, and how long and how often it delivers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from unlost.topology.lint.rule import Rule, Severity
from unlost.topology.lint.world import World
from unlost.topology.objects import Queue

_LENGTHS = ("max-length", "max-length-bytes")
_UNLIMITED_SINCE = (4, 0)
_TIMEOUT_SINCE = (3, 12)
_BROKERS_OWN_TIMEOUT = timedelta(minutes=30)


def _drops_head(world: World) -> Iterator[tuple[Queue, str]]:
    for queue in world.queues:
        settings = world.settings[queue.name]
        limited = [key for key in _LENGTHS if key in settings]
        overflow = settings.get("overflow", "drop-head")
        if limited and queue.type != "stream" and not world.is_letters(queue) and overflow == "drop-head":
            yield queue, f"{limited[0]} {settings[limited[0]]!r} with overflow drop-head"


def _reject_publish_dlx(world: World) -> Iterator[tuple[Queue, str]]:
    for queue in world.queues:
        if queue.type == "quorum" and world.settings[queue.name].get("overflow") == "reject-publish-dlx":
            yield queue, "overflow reject-publish-dlx on a quorum queue"


def _limited_delay_target(world: World) -> Iterator[tuple[Queue, str]]:
    for _, queue in world.delay_targets():
        for key in _LENGTHS:
            if key in world.settings[queue.name]:
                yield queue, f"it is at the end of a delay path and has {key}"


def _limit_as_argument(world: World) -> Iterator[tuple[Queue, str]]:
    for queue in world.queues:
        if "x-delivery-limit" in queue.arguments:
            yield queue, f"delivery limit {queue.arguments['x-delivery-limit']!r} as an argument"


def _limit_with_ledger(world: World) -> Iterator[tuple[Queue, str]]:
    default = 20 if world.version >= _UNLIMITED_SINCE else -1
    for queue in world.queues:
        limit = world.settings[queue.name].get("delivery-limit", default)
        if world.has_ledger(queue) and isinstance(limit, int) and limit >= 0:
            yield queue, f"a delivery limit of {limit} where the ledger decides what is poison"


def _short_timeout(world: World) -> Iterator[tuple[Queue, str]]:
    for queue in world.queues:
        hard = world.hard_limits.get(queue.name)
        if hard is None:
            continue
        timeout = _timeout(world, queue)
        if timeout <= hard:
            yield queue, f"consumer timeout {timeout}, and its slowest task may take {hard}"


def _timeout(world: World, queue: Queue) -> timedelta:
    said = world.settings[queue.name].get("consumer-timeout")
    if isinstance(said, int) and world.version >= _TIMEOUT_SINCE:
        return timedelta(milliseconds=said)
    return _BROKERS_OWN_TIMEOUT


RULES = (
    Rule(
        "drop-head",
        Severity.ERROR,
        "a length limit that drops the oldest message",
        "When the queue is full, the oldest message is dropped (or dead-lettered) for each new one, and its "
        "publisher had been told that it is safe.",
        "Set overflow to reject-publish: the publisher hears of it.",
        _drops_head,
    ),
    Rule(
        "reject-publish-dlx",
        Severity.ERROR,
        "overflow reject-publish-dlx on a quorum queue",
        "Quorum queues do not know it and fall back to drop-head without an error.",
        "Set overflow to reject-publish.",
        _reject_publish_dlx,
    ),
    Rule(
        "limit-on-delay-target",
        Severity.ERROR,
        "a length limit on a queue at the end of a delay path",
        "Messages that the full queue refuses stay at the last level of the path; a few dozen of them stop "
        "every other queue's delays for minutes.",
        "Remove the length limit, or do not bind the queue to the delay path.",
        _limited_delay_target,
    ),
    Rule(
        "delivery-limit-argument",
        Severity.ERROR,
        "a delivery limit as an argument",
        "It can never be raised: of argument and policy the lower one counts, and a policy of -1 does not "
        "lift it. Each crash of a worker brings all that it held nearer to the limit.",
        "Remove the argument (which takes a new queue) and set delivery-limit by policy.",
        _limit_as_argument,
    ),
    Rule(
        "delivery-limit-with-ledger",
        Severity.WARNING,
        "a delivery limit on a queue whose tasks have a ledger",
        "The broker also counts messages that merely waited beside a crash, and dead-letters the innocent.",
        "Set delivery-limit to -1 (or none before 4.0), or declare the queue `without_store`.",
        _limit_with_ledger,
    ),
    Rule(
        "consumer-timeout-too-short",
        Severity.ERROR,
        "a consumer timeout that is not above the hard time limit of the slowest task",
        "The broker takes the delivery back while the task runs, and closes the channel or cancels the "
        "consumer: the task is delivered again and again.",
        "Raise consumer_timeout above the hard limit; before 3.12 only the broker's own, in rabbitmq.conf.",
        _short_timeout,
    ),
)
