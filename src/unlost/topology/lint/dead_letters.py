"""Rules about where messages go that are rejected, expire or are delivered too often."""

from __future__ import annotations

from collections.abc import Iterator

from unlost.topology.lint.rule import Rule, Severity
from unlost.topology.lint.world import World
from unlost.topology.objects import Exchange, Queue
from unlost.topology.routing import takes

_UNLIMITED_SINCE = (4, 0)
_KEYED = ("direct", "topic")


def _without_dlx(world: World) -> Iterator[tuple[Queue, str]]:
    for queue in world.queues:
        if queue.type == "quorum" and not _dlx(world, queue) and not world.is_letters(queue):
            yield queue, "a quorum queue without a dead-letter exchange"


def _dlx_without_queue(world: World) -> Iterator[tuple[Queue, str]]:
    for queue in world.queues:
        name = _dlx(world, queue)
        if name is None or name.startswith("amq."):
            continue
        key = world.settings[queue.name].get("dead-letter-routing-key")
        if name == "":
            if key is not None and world.queue(str(key)) is None:
                yield queue, f"its letters go straight to queue {key!r}, which is not declared"
            continue
        exchange = world.exchange(name)
        if exchange is None:
            yield queue, f"its dead-letter exchange {name!r} is not declared"
        elif not _is_routed(world, exchange, key) and world.alternate_of(exchange) is None:
            what = "no binding" if key is None else f"no binding that takes the key {key!r}"
            yield queue, f"its dead-letter exchange {name!r} has {what}"


def _is_routed(world: World, exchange: Exchange, key: object) -> bool:
    bindings = world.bindings_from(exchange.name)
    return any(key is None or takes(exchange.type, each.routing_key, str(key)) for each in bindings)


def _falls_back(world: World) -> Iterator[tuple[Queue, str]]:
    for queue in world.queues:
        settings = world.settings[queue.name]
        if settings.get("dead-letter-strategy") != "at-least-once":
            continue
        if settings.get("overflow") != "reject-publish":
            yield queue, f"at-least-once with overflow {settings.get('overflow', 'drop-head')!r}"
        elif _dlx(world, queue) is None:
            yield queue, "at-least-once without a dead-letter exchange"


def _at_most_once(world: World) -> Iterator[tuple[Queue, str]]:
    for queue in world.queues:
        strategy = world.settings[queue.name].get("dead-letter-strategy")
        if queue.type == "quorum" and _dlx(world, queue) is not None and strategy != "at-least-once":
            yield queue, "dead-letters at most once"


def _limited_letters(world: World) -> Iterator[tuple[Queue, str]]:
    for queue in world.queues:
        if not world.is_letters(queue):
            continue
        settings = world.settings[queue.name]
        for key in ("message-ttl", "expires", "max-length", "max-length-bytes"):
            if key in settings:
                yield queue, f"it holds letters and has {key} {settings[key]!r}"
        if queue.type == "quorum":
            default = 20 if world.version >= _UNLIMITED_SINCE else -1
            limit = settings.get("delivery-limit", default)
            if isinstance(limit, int) and limit >= 0:
                yield queue, f"it holds letters and has a delivery limit of {limit}"


def _no_letter_key(world: World) -> Iterator[tuple[Queue, str]]:
    for queue in world.queues:
        exchange = world.exchange(_dlx(world, queue))
        keyed = exchange is not None and exchange.type in _KEYED and not world.is_delay_level(queue)
        if keyed and "dead-letter-routing-key" not in world.settings[queue.name]:
            yield queue, f"no dead-letter-routing-key, and {_dlx(world, queue)!r} routes by key"


def _dlx(world: World, queue: Queue) -> str | None:
    name = world.settings[queue.name].get("dead-letter-exchange")
    return None if name is None else str(name)


RULES = (
    Rule(
        "quorum-without-dlx",
        Severity.ERROR,
        "a quorum queue without a dead-letter exchange",
        "A message that is rejected, or returned once more than the delivery limit (20 by default since 4.0; "
        "every crash of a worker returns all that it held), is dropped.",
        "Set dead-letter-exchange and dead-letter-routing-key by policy, or declare it under `queues`.",
        _without_dlx,
    ),
    Rule(
        "dlx-without-queue",
        Severity.ERROR,
        "a dead-letter exchange that is missing, or binds no queue for the letter's key",
        "At most once, every letter is dropped; at least once, letters pile up unseen in their first queue.",
        "Declare the exchange and bind a dead-letter queue with the queue's dead-letter-routing-key.",
        _dlx_without_queue,
    ),
    Rule(
        "at-least-once-fallback",
        Severity.ERROR,
        "at-least-once dead-lettering without reject-publish or without an exchange",
        "The broker falls back to at most once without an error: letters are lost if the target is away.",
        "Set overflow to reject-publish, and a dead-letter-exchange, in the same policy.",
        _falls_back,
    ),
    Rule(
        "letters-at-most-once",
        Severity.WARNING,
        "a quorum queue that dead-letters at most once",
        "A letter is lost if its target is unavailable in that moment, or the broker dies.",
        "Set dead-letter-strategy to at-least-once and overflow to reject-publish.",
        _at_most_once,
    ),
    Rule(
        "letters-limited",
        Severity.ERROR,
        "a TTL, expiry, length limit or delivery limit on a queue that holds letters",
        "Letters disappear before anybody has seen them; under the default delivery limit of 20, looking at "
        "one 21 times deletes it.",
        "Remove the limits; since 4.0 set delivery-limit to -1 by policy.",
        _limited_letters,
    ),
    Rule(
        "letter-key-missing",
        Severity.WARNING,
        "a dead-letter exchange that routes by key, and no dead-letter-routing-key",
        "A letter keeps the key that its message came with: one that came by a delay path, or by another "
        "binding, misses its dead-letter queue.",
        "Set dead-letter-routing-key to the queue's name, or use a fanout exchange.",
        _no_letter_key,
    ),
)
