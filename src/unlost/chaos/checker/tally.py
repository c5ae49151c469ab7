"""The books of a run: what was promised, what came of it, and whether the queues were empty at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from unlost.chaos.checker.base import Anomalous
from unlost.chaos.history import History, Op

_WORK = ("publish", "start", "end", "redrive")


@dataclass(frozen=True, slots=True)
class Tally:
    """Promised effects and their ends, as Jepsen's ``total-queue`` counts enqueues and dequeues.

    Attributes:
        attempted: Values of any publish, failed ones too: if one of those comes out, its publish was
            wrongly called failed, but nothing came from nowhere.
        confirmed: Values with a confirmed publish.
        effects: How often each effect was found.
        lettered: Values that were ever found in a dead-letter queue.
        dead: Those that were not sent back from there since.
        disowned: Values of which every publish is said to have failed.
    """

    attempted: frozenset[str]
    confirmed: frozenset[str]
    effects: Mapping[str, int]
    lettered: frozenset[str]
    dead: frozenset[str]
    disowned: frozenset[str]

    @classmethod
    def of(cls, history: History) -> Tally:
        """Count a history, in one pass for each kind of operation.

        Raises:
            HarnessError: An operation that must name a value does not.
        """
        letters = _latest(history.named("dead", "ok"))
        redrives = _latest(history.named("redrive", "invoke", "ok", "info"))
        tried = Counter(value for value, _ in history.named("publish", "invoke"))
        failed = Counter(value for value, _ in history.named("publish", "fail"))
        return cls(
            attempted=history.values("publish"),
            confirmed=history.values("publish", "ok"),
            effects=Counter(value for value, _ in history.named("effect", "ok")),
            lettered=frozenset(letters),
            dead=frozenset(value for value, at in letters.items() if at >= redrives.get(value, at)),
            disowned=frozenset(value for value, times in failed.items() if times >= tried[value]),
        )

    @property
    def missing(self) -> frozenset[str]:
        """Confirmed, but neither executed nor to be found in a dead-letter queue."""
        return self.confirmed - self.effects.keys() - self.dead

    @property
    def unexpected(self) -> frozenset[str]:
        """Executed or dead-lettered, but never published."""
        return (self.lettered | self.effects.keys()) - self.attempted

    @property
    def surplus(self) -> Mapping[str, int]:
        """Effects that happened more than once, and how many times too often."""
        return {value: times - 1 for value, times in self.effects.items() if times > 1}

    @property
    def recovered(self) -> frozenset[str]:
        """Published without a confirm, and came out all the same."""
        return (self.attempted - self.confirmed) & (self.lettered | self.effects.keys())


def _latest(named: Iterable[tuple[str, Op]]) -> dict[str, int]:
    latest: dict[str, int] = {}
    for value, op in named:
        latest[value] = max(op.time_ns, latest.get(value, op.time_ns))
    return latest


def undrained(history: History) -> list[Anomalous]:
    """Return every reason to doubt that the queues were empty when the run was over.

    The proof is a ``residual`` count of zero for each work queue, made after the last publish, start, end
    and redrive. A count that is missing, crashed or older proves nothing.
    """
    counts = _last_counts(history)
    worked_ns = max((op.time_ns for f in _WORK for op in history.of(f)), default=0)
    none = [] if counts else [Anomalous("undrained", None, "no queue was counted after the run")]
    doubts = [_doubt(queue, op, worked_ns) for queue, ops in counts.items() for op in ops]
    return [*none, *_crashed_drains(history), *(doubt for doubt in doubts if doubt)]


def _last_counts(history: History) -> dict[str, list[Op]]:
    """Group the latest counts by queue: several if they have the same time, since none is then the last."""
    last: dict[str, list[Op]] = {}
    for queue, op in history.named("residual"):
        previous = last.get(queue)
        if previous is None or _moment(op) > _moment(previous[0]):
            last[queue] = [op]
        elif _moment(op) == _moment(previous[0]):
            previous.append(op)
    return last


def _moment(op: Op) -> tuple[int, bool]:
    return op.time_ns, op.type != "invoke"


def _doubt(queue: str, count: Op, worked_ns: int) -> Anomalous | None:
    left = count.extra.get("messages")
    if count.type != "ok" or not isinstance(left, int) or left < 0:
        reason = "its messages could not be counted"
    elif left:
        reason = f"it still holds {left} messages{_where(count)}"
    elif count.time_ns < worked_ns:
        reason = "it was counted before the work was over"
    else:
        return None
    return Anomalous("undrained", queue, f"queue {queue}: {reason}", (count,))


def _where(count: Op) -> str:
    """Tell whether nobody takes the messages or somebody keeps them."""
    ready, unacknowledged = count.extra.get("ready"), count.extra.get("unacknowledged")
    return "" if ready is None else f" ({ready} ready, {unacknowledged} with consumers)"


def _crashed_drains(history: History) -> list[Anomalous]:
    last = {(op.process, op.value): op for op in history.of("drain")}
    return [
        Anomalous("undrained", op.value, f"the drain by {op.process} did not end well", (op,))
        for op in last.values()
        if op.type != "ok"
    ]
