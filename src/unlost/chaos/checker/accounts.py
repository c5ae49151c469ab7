"""Rules beside the promise: the sums agree, nobody pays for a neighbour, effects come in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from unlost.chaos.checker.activity import faults, lives
from unlost.chaos.checker.base import Anomalous, Finding, Verdict
from unlost.chaos.checker.tally import Tally, undrained
from unlost.chaos.history import History, Op

#: With these reasons a letter says that its own task is dangerous to run.
POISON = frozenset({"poison", "delivery_limit", "delivery-limit"})


class Conserved:
    """What went in came out: the sums agree with each other and with the broker's own count of letters.

    Confirmed promises and those that came out without a confirm are together as many as those with an end,
    and each dead-letter queue holds as many letters as were read from it. It is the same books added up
    another way, so it speaks when the reading of letters or effects itself is wrong. Promises that may still
    be in a queue that was not proved empty are ``UNKNOWN``.
    """

    name = "conserved"

    def check(self, history: History) -> Finding:
        """Judge a history."""
        tally, doubts = Tally.of(history), undrained(history)
        ended = tally.effects.keys() | tally.dead
        missing = len(tally.confirmed | tally.recovered) - len(ended & tally.attempted)
        sums = [_imbalance(missing)] if missing else []
        counts = [found for op in history.of("letters", "ok") if (found := _miscounted(op))]
        verdict = Verdict.VALID
        if counts or (sums and not doubts):
            verdict = Verdict.INVALID
        elif doubts:
            verdict = Verdict.UNKNOWN
        figures = {
            "promised": len(tally.confirmed | tally.recovered),
            "ended": len(ended),
            "letters": sum(int(op.extra.get("read", 0)) for op in history.of("letters", "ok")),
        }
        return Finding(self.name, verdict, (*sums, *counts, *doubts), figures)


def _imbalance(missing: int) -> Anomalous:
    more = "promises than ends" if missing > 0 else "ends than promises"
    return Anomalous("imbalance", None, f"{abs(missing)} more {more}")


def _miscounted(op: Op) -> Anomalous | None:
    counted, read = op.extra.get("messages"), op.extra.get("read")
    if counted == read and isinstance(read, int):
        return None
    reason = f"queue {op.value}: the broker counts {counted} letters, {read} were read"
    return Anomalous("miscounted letters", op.value, reason, (op,))


class NoBystanders:
    """No letter calls a task poison that was never started: it was only near one that is.

    RabbitMQ's delivery limit charges every message that a dying consumer had prefetched
    (https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling).
    """

    name = "no-bystanders"

    def check(self, history: History) -> Finding:
        """Judge a history."""
        accused = {
            value: op
            for value, op in history.named("dead", "ok")
            if op.extra.get("reason") in POISON and op.extra.get("own", True)
        }
        innocent = accused.keys() - history.values("start")
        found = [
            Anomalous("bystander", value, f"{value}: dead-lettered as poison, but was never started", ops)
            for value, ops in lives(history, innocent).items()
        ]
        verdict = Verdict.INVALID if found else Verdict.VALID
        ordered = tuple(sorted(found, key=lambda anomaly: anomaly.ops[0].index))
        return Finding(self.name, verdict, ordered, {"poison": len(accused), "bystanders": len(found)})


@dataclass(frozen=True)
class Timely:
    """Effects came in time, and no later than so long after the last fault.

    Its figures are quantiles of the time from confirm to first effect, in seconds, and the time from the
    last fault's end to the last effect. Without a bound it only measures.

    Args:
        within: The longest time from a confirm to its effect; ``None`` for no bound.
        settled_within: The longest time from the end of the last fault to the last effect; ``None`` for no
            bound.
    """

    within: timedelta | None = None
    settled_within: timedelta | None = None
    name = "timely"

    def check(self, history: History) -> Finding:
        """Judge a history."""
        took = latencies(history)
        late = [value for value, seconds in took.items() if _exceeds(seconds, self.within)]
        found = [
            Anomalous("late", value, f"{value}: took {took[value]:.3f} s from confirm to effect", ops)
            for value, ops in lives(history, late).items()
        ]
        settling = settling_time(history)
        if settling is not None and _exceeds(settling, self.settled_within):
            reason = f"the last effect came {settling:.3f} s after the end of the last fault"
            found.append(Anomalous("late to settle", None, reason))
        ordered = sorted(took.values())
        figures = {
            **{f"latency_p{part}": quantile(ordered, part / 100) for part in (50, 95, 99, 100) if ordered},
            **({} if settling is None else {"settling": settling}),
        }
        return Finding(self.name, Verdict.INVALID if found else Verdict.VALID, tuple(found), figures)


def latencies(history: History) -> dict[str, float]:
    """Return for each confirmed value with an effect the seconds from its confirm to its first effect.

    An effect may come before its confirm arrives: that is no time at all.
    """
    confirmed: dict[str, int] = {}
    for value, op in history.named("publish", "ok"):
        confirmed.setdefault(value, op.time_ns)
    first: dict[str, int] = {}
    for value, op in history.named("effect", "ok"):
        first[value] = min(op.time_ns, first.get(value, op.time_ns))
    return {value: max(0, first[value] - at_ns) / 1e9 for value, at_ns in confirmed.items() if value in first}


def settling_time(history: History) -> float | None:
    """Return the seconds from the last operation of a nemesis to the last effect, if any came after it."""
    ends = [op.time_ns for op in history if op.process == "nemesis"] if faults(history) else []
    effects = [op.time_ns for op in history.of("effect", "ok")]
    return max(0, max(effects) - max(ends)) / 1e9 if ends and effects else None


def quantile(ordered: Sequence[float], part: float) -> float:
    """Return the smallest of ordered numbers that at least this part of them does not exceed.

    Raises:
        ValueError: There are none.
    """
    if not ordered:
        raise ValueError("no quantile of nothing")
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def _exceeds(seconds: float, bound: timedelta | None) -> bool:
    return bound is not None and seconds > bound.total_seconds()
