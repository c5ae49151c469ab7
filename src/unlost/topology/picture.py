"""A topology for people: a picture in Mermaid or DOT, and tables in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from unlost.topology.effective import Rules, effect_on, settings_of
from unlost.topology.objects import Binding, BrokerObject, Exchange, OperatorPolicy, Policy, Queue


class Graph:
    """What hands messages to what: bindings, dead-letter exchanges and alternate exchanges.

    Args:
        objects: Everything that is declared.
        delay_path: Whether to draw the levels of a delay path, which are many and all alike.
    """

    def __init__(self, objects: Iterable[BrokerObject], *, delay_path: bool = False) -> None:
        everything = [each for each in objects if delay_path or not _is_level(each)]
        self.exchanges = [each for each in everything if isinstance(each, Exchange)]
        self.queues = [each for each in everything if isinstance(each, Queue)]
        self._bindings = [each for each in everything if isinstance(each, Binding)]
        self._rules = (
            Rules(each for each in everything if isinstance(each, Policy)),
            Rules(each for each in everything if isinstance(each, OperatorPolicy)),
        )
        names = [("exchange", each.name) for each in self.exchanges]
        names += [("queue", each.name) for each in self.queues]
        self._ids = {name: f"n{number}" for number, name in enumerate(names)}

    def id_of(self, kind: str, name: str) -> str | None:
        """Return the id of an object in the picture; ``None`` if it is not drawn."""
        return self._ids.get((kind, name))

    def edges(self) -> Iterator[tuple[str, str, str, bool]]:
        """Yield (from, to, label, whether the broker does it by itself)."""
        for each in self._bindings:
            source = self.id_of("exchange", each.source)
            target = self.id_of(each.destination_type, each.destination)
            if source and target:
                yield source, target, each.routing_key, False
        for queue in self.queues:
            settings = settings_of(queue, effect_on(queue, *self._rules).definition)
            target = self.id_of("exchange", str(settings.get("dead-letter-exchange")))
            if target:
                yield self._ids["queue", queue.name], target, "dead letters", True
        for exchange in self.exchanges:
            merged = {**effect_on(exchange, *self._rules).definition, **exchange.arguments}
            target = self.id_of("exchange", str(merged.get("alternate-exchange")))
            if target:
                yield self._ids["exchange", exchange.name], target, "unroutable", True


def mermaid(graph: Graph) -> str:
    """Return a Mermaid flowchart."""
    lines = ["flowchart LR"]
    lines += [
        f"  {graph.id_of('exchange', each.name)}{{{{{_label(each.name)}}}}}" for each in graph.exchanges
    ]
    lines += [f"  {graph.id_of('queue', each.name)}[({_label(each.name)})]" for each in graph.queues]
    for source, target, label, automatic in graph.edges():
        arrow = "-.->" if automatic else "-->"
        lines.append(f"  {source} {arrow}{f'|{_label(label)}|' if label else ''} {target}")
    return "\n".join(lines) + "\n"


def dot(graph: Graph) -> str:
    """Return a graph for Graphviz."""
    lines = ["digraph topology {", "  rankdir=LR;"]
    lines += [
        f"  {graph.id_of('exchange', each.name)} [shape=hexagon, label={json.dumps(each.name)}];"
        for each in graph.exchanges
    ]
    lines += [
        f"  {graph.id_of('queue', each.name)} [shape=cylinder, label={json.dumps(each.name)}];"
        for each in graph.queues
    ]
    for source, target, label, automatic in graph.edges():
        style = ", style=dashed" if automatic else ""
        lines.append(f"  {source} -> {target} [label={json.dumps(label)}{style}];")
    return "\n".join([*lines, "}"]) + "\n"


def markdown(objects: Iterable[BrokerObject]) -> str:
    """Return one table per kind: queues with what is in effect on them, exchanges, bindings."""
    everything = tuple(objects)
    rules = (
        Rules(each for each in everything if isinstance(each, Policy)),
        Rules(each for each in everything if isinstance(each, OperatorPolicy)),
    )
    queues = [
        (each.name, each.type, _settings(settings_of(each, effect_on(each, *rules).definition)))
        for each in everything
        if isinstance(each, Queue)
    ]
    exchanges = [
        (each.name, each.type, _settings({**effect_on(each, *rules).definition, **each.arguments}))
        for each in everything
        if isinstance(each, Exchange)
    ]
    bindings = [
        (each.source, each.routing_key, each.destination) for each in everything if isinstance(each, Binding)
    ]
    return "\n".join(
        [
            *_table("Queues", ("queue", "type", "in effect"), queues),
            *_table("Exchanges", ("exchange", "type", "in effect"), exchanges),
            *_table("Bindings", ("from", "key", "to"), bindings),
        ]
    )


def _table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield from (f"## {title}", "", _row(head), _row(("---",) * len(head)))
    yield from (_row(tuple(_cell(cell) for cell in row)) for row in rows)
    yield ""


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


def _settings(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(settings.items()) if key != "queue-type")


def _label(text: str) -> str:
    """Return a quoted label; Mermaid takes HTML entities for what would end it."""
    escaped = text.replace("#", "#35;").replace('"', "#quot;")
    return f'"{escaped}"'


def _is_level(each: BrokerObject) -> bool:
    name = each.source if isinstance(each, Binding) else getattr(each, "name", "")
    stem, _, level = str(name).rpartition("_")
    return level.isdigit() and stem.endswith("_celery_delayed")
