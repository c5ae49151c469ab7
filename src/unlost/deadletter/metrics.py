"""Figures that are worth an alert, as plain values: letters by reason, how old the oldest is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from unlost.deadletter.letter import DeadLetter
from unlost.deadletter.move import Report


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

    def samples(self, now: datetime) -> Iterator[tuple[str, dict[str, str], float]]:
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


def redrive_samples(queue: str, report: Report) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield name, labels and value of what a redrive did."""
    outcomes = {
        "sent": report.sent,
        "only-acked": report.acked,
        "failed": sum(report.failed.values()),
        "unknown": report.unknown,
        "came-back": report.came_back,
        "kept": sum(report.kept.values()),
    }
    for outcome, count in outcomes.items():
        yield "unlost_redriven_letters", {"queue": queue, "outcome": outcome}, count
    yield "unlost_redrive_stopped", {"queue": queue}, float(report.stopped is not None)
