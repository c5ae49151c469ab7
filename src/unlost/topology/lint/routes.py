"""Rules about exchanges, bindings and the delay path."""

from __future__ import annotations

from collections.abc import Iterator

from unlost.errors import TopologyError
from unlost.topology import naming
from unlost.topology.lint.rule import Rule, Severity
from unlost.topology.lint.world import World
from unlost.topology.objects import Binding, Exchange, Queue
from unlost.topology.routing import topic_matches

_MOST_HASHES = 2


def _unsafe_name(world: World) -> Iterator[tuple[Queue, str]]:
    for _, queue in world.delay_targets():
        try:
            naming.check_queue_name(queue.name)
        except TopologyError as exc:
            yield queue, str(exc)


def _direct(world: World) -> Iterator[tuple[Exchange, str]]:
    for exchange in world.exchanges:
        if exchange.type != "direct":
            continue
        for binding in world.bindings_from(exchange.name):
            queue = world.queue(binding.destination)
            if binding.destination_type == "queue" and queue is not None and world.is_work(queue):
                yield exchange, f"a direct exchange in front of work queue {queue.name!r}"
                break


def _silent_publisher(world: World) -> Iterator[tuple[Exchange, str]]:
    fed = {exchange.name for exchange in world.broker_exchanges()}
    fed |= {str(name) for each in world.exchanges if (name := world.alternate_of(each)) is not None}
    fed |= {each.destination for each in world.bindings if each.destination_type == "exchange"}
    for exchange in world.exchanges:
        alternate = world.alternate_of(exchange)
        published = exchange.name == world.application_exchange or exchange.name not in fed
        if alternate is not None and published and not exchange.internal:
            yield exchange, f"applications publish to it, and it has alternate exchange {alternate!r}"


def _dead_end(world: World) -> Iterator[tuple[Exchange, str]]:
    for exchange in world.broker_exchanges():
        bound = world.bindings_from(exchange.name)
        always_routes = exchange.type == "fanout" and bool(bound)
        if world.alternate_of(exchange) is None and not always_routes:
            yield exchange, "the broker publishes to it, and it has no alternate exchange"


def _over_matching(world: World) -> Iterator[tuple[Binding, str]]:
    for exchange in world.exchanges:
        if exchange.type != "topic":
            continue
        bindings = world.bindings_from(exchange.name)
        plain = [each for each in bindings if "#" not in each.routing_key and "*" not in each.routing_key]
        wide = [each for each in bindings if "#" in each.routing_key.split(".")]
        for binding in wide:
            other = _first_stolen(binding, plain)
            if other is not None:
                yield binding, f"it also takes {other.routing_key!r}, which belongs to {other.destination!r}"
    for binding, queue in world.delay_targets():
        key = binding.routing_key
        if key.startswith("#.") and not key.startswith("#.q:"):
            for _, victim in world.delay_targets():
                if victim != queue and topic_matches(key, f"0.{victim.name}"):
                    yield binding, f"it also takes what is on its way to {victim.name!r}"
                    break


def _first_stolen(wide: Binding, plain: list[Binding]) -> Binding | None:
    for other in plain:
        if other.destination != wide.destination and topic_matches(wide.routing_key, other.routing_key):
            return other
    return None


def _many_hashes(world: World) -> Iterator[tuple[Binding, str]]:
    for binding in world.bindings:
        hashes = binding.routing_key.split(".").count("#")
        if hashes > _MOST_HASHES:
            yield binding, f"{hashes} '#' in one key"


RULES = (
    Rule(
        "delay-unsafe-name",
        Severity.ERROR,
        "a queue at the end of a delay path whose name breaks the path's keys",
        "Delayed messages reach another queue, or none.",
        "Rename it: no word that begins with q:, no * or #, at most 190 bytes.",
        _unsafe_name,
    ),
    Rule(
        "direct-exchange-delay",
        Severity.WARNING,
        "a direct exchange in front of a work queue",
        "Celery's own delayed delivery skips direct exchanges: a task with an ETA waits in a worker, "
        "unacked, until the consumer timeout takes it away.",
        "Use a topic exchange, or publish through the topology's own.",
        _direct,
    ),
    Rule(
        "alternate-hides-unroutable",
        Severity.ERROR,
        "an alternate exchange on an exchange that applications publish to",
        "A message that no queue takes counts as routed: mandatory reports nothing and the publisher never "
        "learns of it.",
        "Remove the alternate exchange; the publisher gets Unroutable instead.",
        _silent_publisher,
    ),
    Rule(
        "broker-exchange-dead-end",
        Severity.WARNING,
        "a dead-letter or delay exchange without an alternate exchange",
        "Nobody tells the broker: a letter that no queue takes is dropped, or holds up the path.",
        "Give it an alternate exchange by policy, with a queue behind it.",
        _dead_end,
    ),
    Rule(
        "hash-over-matches",
        Severity.WARNING,
        "a key with # that takes another queue's messages",
        "A message goes to both queues, and its task runs twice.",
        "Anchor the key, or name the messages one by one.",
        _over_matching,
    ),
    Rule(
        "too-many-hashes",
        Severity.ERROR,
        "more than two # in one key",
        "Brokers since 4.3.5 refuse the binding: the queue gets nothing.",
        "Use two at most.",
        _many_hashes,
        since=(4, 3),
    ),
)
