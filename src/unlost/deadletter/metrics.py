"""Figures that are worth an alert, as plain values: letters by reason, the oldest's age, redrive outcomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from unlost.deadletter.letter import DeadLetter

#: Name, labels and value, as Prometheus takes them.
Sample = tuple[str, dict[str, str], float]

#: What can become of a letter in a redrive, by the audit log's names.
_OUTCOMES = ("sent", "acked", "failed", "unknown", "came_back", "kept")

_HELP = {
    "unlost_dead_letters": "Letters in a queue, by the reason of their death.",
    "unlost_dead_letter_loops": "Letters that were sent back before and died of the same.",
    "unlost_dead_letter_oldest_age_seconds": "How long ago the oldest letter died.",
    "unlost_redriven_letters_total": "Letters that redrives have seen, by what became of them.",
    "unlost_redrives_stopped_total": "Redrives that stopped by themselves.",
}


@dataclass(kw_only=True)
class LetterFigures:
    """What one look at a queue of letters found.

    Attributes:
        queue: Which queue.
        letters: How many.
        by_reason: How many for each reason.
        loops: How many were sent back before and died of the same.
        oldest: When the first of those that say so died.
    """

    queue: str
    letters: int = 0
    by_reason: Counter[str] = field(default_factory=Counter)
    loops: int = 0
    oldest: datetime | None = None

    def age(self, now: datetime) -> timedelta | None:
        """Return how long ago the oldest died."""
        return None if self.oldest is None else now - self.oldest

    def samples(self, now: datetime) -> Iterator[Sample]:
        """Yield name, labels and value of each figure, as Prometheus takes them."""
        for reason, count in sorted(self.by_reason.items()):
            yield "unlost_dead_letters", {"queue": self.queue, "reason": reason}, count
        yield "unlost_dead_letter_loops", {"queue": self.queue}, self.loops
        age = self.age(now)
        if age is not None:
            yield "unlost_dead_letter_oldest_age_seconds", {"queue": self.queue}, age.total_seconds()


def figures_of(queue: str, letters: Iterable[DeadLetter]) -> LetterFigures:
    """Count the letters of a queue."""
    figures = LetterFigures(queue=queue)
    for letter in letters:
        figures.letters += 1
        figures.by_reason[letter.reason] += 1
        figures.loops += letter.is_loop
        if letter.failed_at is not None:
            figures.oldest = min(figures.oldest or letter.failed_at, letter.failed_at)
    return figures


def redrive_samples(runs: Iterable[Mapping[str, Any]]) -> Iterator[Sample]:
    """Yield name, labels and value of what redrives have done.

    Args:
        runs: The audit log's lines (:meth:`unlost.deadletter.audit.AuditLog.read`).
    """
    letters: Counter[tuple[str, str]] = Counter()
    stops: Counter[str] = Counter()
    for run in runs:
        if run.get("action") != "redrive-ended":
            continue
        queue = str(run.get("queue", ""))
        stops[queue] += bool(run.get("stopped"))
        for outcome in _OUTCOMES:
            letters[queue, outcome] += _total(run.get(outcome, 0))
    for (queue, outcome), count in sorted(letters.items()):
        yield "unlost_redriven_letters_total", {"queue": queue, "outcome": outcome}, count
    for queue, count in sorted(stops.items()):
        yield "unlost_redrives_stopped_total", {"queue": queue}, count


def _total(found: Any) -> int:
    return sum(found.values()) if isinstance(found, Mapping) else int(found)


def exposition(samples: Iterable[Sample]) -> str:
    """Return samples in the text format that Prometheus reads from a page or a file.

    https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
    """
    by_name: dict[str, list[str]] = {}
    for name, labels, value in samples:
        shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        by_name.setdefault(name, []).append(f"{name}{{{shown}}} {value:g}")
    lines: list[str] = []
    for name, found in by_name.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# HELP {name} {_HELP[name]}", f"# TYPE {name} {kind}", *found]
    return "".join(f"{line}\n" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
