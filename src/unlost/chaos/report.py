"""What a run came to: its figures, as a line for machines and a table for people, and its anomalies told.

Everything here is a value or a rendering of one. Nothing prints.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from unlost.chaos.checker import (
    Anomalous,
    EffectsOnce,
    Judgement,
    NothingLost,
    Verdict,
    faults,
    slowest_recovery,
)
from unlost.chaos.history import History, Op


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a run.

    ``published``, ``confirmed`` and ``executed`` count messages, the rest counts effects: a message may
    promise several of them.

    Attributes:
        published: Messages that were published, whatever came of it.
        confirmed: Those that the broker confirmed.
        executed: Those whose effects all happened.
        effects: Effects that happened, repetitions included.
        lost: Confirmed effects that were proved to have no end; 0 while the queues were not proved empty.
        duplicate_effects: Effects that happened once too often.
        dead_lettered: Effects whose message is in a dead-letter queue.
        kills: How many times the nemesis killed processes.
        broker_restarts: How many times it killed or restarted a broker or a node.
        faults: How many times it did anything, kills included.
        slowest_recovery_s: Longest time from a fault to the effect of a task it interrupted, in seconds;
            ``None`` if no fault interrupted one.
        verdict: What the checkers said.
    """

    published: int
    confirmed: int
    executed: int
    effects: int
    lost: int
    duplicate_effects: int
    dead_lettered: int
    kills: int
    broker_restarts: int
    faults: int
    slowest_recovery_s: float | None
    verdict: Verdict

    def to_json_line(self) -> str:
        """Return one line of JSON, without its newline."""
        return json.dumps(asdict(self))


#: Faults that kill processes of workers.
KILLS = frozenset({"kill", "crash"})

#: Faults after which a node had to start again.
RESTARTS = frozenset({"restart_broker", "kill_broker", "kill_node", "leader_loss", "rolling_restart"})


def injuries(history: History) -> Mapping[str, int]:
    """Return how often each nemesis struck, by the name of its operations."""
    return Counter(op.f for op in faults(history))


def figures(judgement: Judgement, history: History, per_message: int | None = None) -> Figures:
    """Count a run.

    Args:
        judgement: What the checkers said; only its verdict is used, so that the figures do not depend on
            which of them were asked.
        history: The run.
        per_message: How many effects each message promises; as the history says when not given, else 1.

    Raises:
        ValueError: ``per_message`` is less than 1.
        HarnessError: The history names no value where there must be one.
    """
    if per_message is None:
        per_message = max((int(op.extra["per_message"]) for op in history.of("workload")), default=1)
    if per_message < 1:
        raise ValueError(f"a message promises at least one effect, not {per_message}")
    ends, effects = NothingLost().check(history).figures, EffectsOnce().check(history).figures
    slowest = slowest_recovery(history)
    return Figures(
        # Rounded down, so that a message of which one effect is missing is not called executed.
        published=int(ends["published"] // per_message),
        confirmed=int(ends["confirmed"] // per_message),
        executed=int(ends["executed"] // per_message),
        effects=int(effects["effects"]),
        lost=int(ends["lost"]),
        duplicate_effects=int(effects["duplicate_effects"]),
        dead_lettered=int(ends["dead_lettered"]),
        kills=len(faults(history, KILLS)),
        broker_restarts=len(faults(history, RESTARTS)),
        faults=len(faults(history)),
        slowest_recovery_s=None if slowest is None else round(slowest.total_seconds(), 3),
        verdict=judgement.verdict,
    )


def exit_status(figures: Figures) -> int:
    """Return 0 for a run that passed, 1 for one that found an anomaly, 3 for one that proves nothing.

    A run without a fault proves nothing, whatever its verdict.
    """
    if figures.verdict is Verdict.INVALID or figures.lost or figures.duplicate_effects:
        return 1
    return 0 if figures.verdict is Verdict.VALID and figures.faults else 3


def table(figures: Figures, title: str) -> Table:
    """Return the figures as a table of two columns, with what speaks against a pass in red."""
    rendered = Table("figure", title=title, title_justify="left")
    rendered.add_column("value", justify="right")
    for name, value in asdict(figures).items():
        label = name.removesuffix("_s").replace("_", " ")
        rendered.add_row(label, _shown(name, value), style=_style(name, value))
    return rendered


def _shown(name: str, value: object) -> str:
    if value is None:
        return "-"
    return f"{value} s" if name.endswith("_s") else str(value)


def _style(name: str, value: object) -> str | None:
    if name == "verdict":
        return "bold green" if value == Verdict.VALID else "bold red"
    return "red" if name in {"lost", "duplicate_effects"} and value else None


def explain(judgement: Judgement, limit: int = 3) -> list[str]:
    """Tell what speaks against a pass, as lines of text.

    For each kind of anomaly: how many there are, and the life of the first few, operation by operation,
    in seconds since the run began. A run that passed has nothing to tell.

    Args:
        judgement: What the checkers said.
        limit: How many anomalies of each kind to tell in full.
    """
    kinds: dict[str, list[Anomalous]] = {}
    for anomaly in judgement.anomalies:
        kinds.setdefault(anomaly.kind, []).append(anomaly)
    began_ns = judgement.began_ns or 0
    return [line for kind, found in kinds.items() for line in _told(kind, found, limit, began_ns)]


def _told(kind: str, found: Sequence[Anomalous], limit: int, began_ns: int) -> Iterator[str]:
    yield f"{kind}: {len(found)}"
    # The shortest lives first: they tell the most with the least.
    for anomaly in sorted(found, key=lambda anomaly: len(anomaly.ops))[:limit]:
        yield f"  {anomaly.explanation}"
        yield from _life(anomaly.ops, began_ns)
    if len(found) > limit:
        yield f"  and {len(found) - limit} more"


def _life(ops: Sequence[Op], began_ns: int) -> Iterator[str]:
    process = max((len(op.process) for op in ops), default=0)
    f = max((len(op.f) for op in ops), default=0)
    for op in ops:
        seconds = (op.time_ns - began_ns) / 1e9
        yield f"    {seconds:+10.3f} s  {op.process:<{process}}  {op.f:<{f}}  {op.type}"
