"""The rules of the promise. Each judges what a history shows; none of them trusts a run that did nothing.

They follow Jepsen's ``total-queue`` checker, with two differences: an effect that happens twice is an
anomaly, and a queue that was not proved empty makes a loss unknown instead of certain.
https://github.com/jepsen-io/jepsen/blob/main/jepsen/src/jepsen/checker.clj
"""

from __future__ import annotations

from collections.abc import Collection

from unlost.chaos.checker.activity import lives
from unlost.chaos.checker.base import Anomalous, Finding, Verdict
from unlost.chaos.checker.tally import Tally, undrained
from unlost.chaos.history import History


class NothingLost:
    """Every confirmed publish was executed, or is in a dead-letter queue.

    ``VALID`` and ``INVALID`` both need the proof that the work queues were empty at the end: a message
    that is still in one is not lost yet. Without it the verdict is ``UNKNOWN`` and what is absent is called
    missing. Dead-letter queues are not work queues: their letters are an end, recorded as ``dead``. A letter
    that was sent back is no end any more, it must come out again.
    """

    name = "nothing-lost"

    def check(self, history: History) -> Finding:
        """Judge a history."""
        tally, doubts = Tally.of(history), undrained(history)
        kind = "missing" if doubts else "lost"
        absent = _anomalies(history, kind, tally.missing, "confirmed, but neither executed nor dead-lettered")
        verdict = Verdict.UNKNOWN if doubts else _invalid_if(absent)
        figures = {
            "published": len(tally.attempted),
            "confirmed": len(tally.confirmed),
            "executed": len(tally.effects),
            "dead_lettered": len(tally.dead),
            "missing": len(tally.missing),
            "lost": 0 if doubts else len(tally.missing),
        }
        return Finding(self.name, verdict, (*absent, *doubts), figures)


class NothingFromNowhere:
    """Everything that was executed or dead-lettered had been published.

    Publishes without a confirm may come out or not. The figure ``recovered`` counts those that did;
    ``wrongly_failed`` those among them that their publisher had called failed, which needs proof.
    """

    name = "nothing-from-nowhere"

    def check(self, history: History) -> Finding:
        """Judge a history."""
        tally = Tally.of(history)
        anomalies = _anomalies(history, "unexpected", tally.unexpected, "came out, but was never published")
        figures = {
            "unexpected": len(tally.unexpected),
            "recovered": len(tally.recovered),
            "wrongly_failed": len(tally.recovered & tally.disowned),
        }
        return Finding(self.name, _invalid_if(anomalies), anomalies, figures)


class EffectsOnce:
    """No effect happened twice, as far as the history goes.

    The figure ``duplicate_effects`` counts the effects that are too many, not the values that have some.
    """

    name = "effects-once"

    def check(self, history: History) -> Finding:
        """Judge a history."""
        tally = Tally.of(history)
        anomalies = _anomalies(history, "duplicate effect", tally.surplus, "took effect more than once")
        figures = {"effects": sum(tally.effects.values()), "duplicate_effects": sum(tally.surplus.values())}
        return Finding(self.name, _invalid_if(anomalies), anomalies, figures)


class ExclusiveEnd:
    """Nothing was both executed and dead-lettered, unless a redrive came before its effect."""

    name = "exclusive-end"

    def check(self, history: History) -> Finding:
        """Judge a history."""
        tally = Tally.of(history)
        both = [value for value in tally.lettered & tally.effects.keys() if not _redriven(history, value)]
        anomalies = _anomalies(history, "two ends", both, "was executed and dead-lettered without a redrive")
        return Finding(self.name, _invalid_if(anomalies), anomalies, {"two_ends": len(both)})


def _redriven(history: History, value: str) -> bool:
    """Tell whether a redrive may have caused the first effect: one that certainly failed did not."""
    ops = history.about(value)
    effect_ns = min(op.time_ns for op in ops if op.f == "effect" and op.type == "ok")
    return any(op.f == "redrive" and op.type != "fail" and op.time_ns <= effect_ns for op in ops)


def _invalid_if(anomalies: Collection[Anomalous]) -> Verdict:
    return Verdict.INVALID if anomalies else Verdict.VALID


def _anomalies(history: History, kind: str, values: Collection[str], what: str) -> tuple[Anomalous, ...]:
    """Return one anomaly for each value, ordered by when the value first appeared."""
    found = [Anomalous(kind, value, f"{value}: {what}", ops) for value, ops in lives(history, values).items()]
    return tuple(sorted(found, key=lambda anomaly: anomaly.ops[0].index))
