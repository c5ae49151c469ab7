"""What became of the tasks of a scenario, judged from effects, letters and queues alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Outcome(StrEnum):
    """What a scenario did to its tasks; the worst one counts, in this order."""

    LOST = "lost"
    REPEATED = "repeated"
    DIED = "died"
    STUCK = "stuck"
    FINE = "fine"


class Ending(StrEnum):
    """How a task of a scenario is to end under unlost."""

    EFFECT = "executed once"
    LETTER = "a letter"
    REFUSED = "refused at the publish"
    NOTHING = "not executed"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What can be seen when a scenario is over; tasks by their label.

    Attributes:
        effects: How often each effect happened.
        letters: Dead letters that an operator can see.
        left: Messages in any other queue, after all workers have stopped.
        refused: Publishes that raised: nobody was told that they succeeded.
        died: Whether a worker ended that nobody had stopped.
    """

    effects: Mapping[str, int] = field(default_factory=Counter)
    letters: Mapping[str, int] = field(default_factory=Counter)
    left: Mapping[str, int] = field(default_factory=Counter)
    refused: frozenset[str] = frozenset()
    died: bool = False


def judge(evidence: Evidence, expected: Mapping[str, Ending]) -> Outcome:
    """Return the worst that happened to any of the expected tasks, or to their worker.

    A task is fine when it was executed once, is a letter, or was never acknowledged to its publisher.
    """
    outcomes = [_outcome_of(label, ending, evidence) for label, ending in expected.items()]
    if evidence.died:
        outcomes.append(Outcome.DIED)
    return min(outcomes, key=list(Outcome).index, default=Outcome.FINE)


def _outcome_of(label: str, ending: Ending, evidence: Evidence) -> Outcome:
    times = evidence.effects.get(label, 0)
    if ending is Ending.NOTHING:
        # What got lost is the order not to run it.
        return Outcome.LOST if times else Outcome.FINE
    if times > 1:
        return Outcome.REPEATED
    if times == 1 or label in evidence.refused or evidence.letters.get(label):
        return Outcome.FINE
    return Outcome.STUCK if evidence.left.get(label) else Outcome.LOST


def has_ended(evidence: Evidence, expected: Mapping[str, Ending]) -> bool:
    """Tell whether every expected task has come to its end."""
    return all(ending is endings_of(label, evidence) for label, ending in expected.items())


def endings_of(label: str, evidence: Evidence) -> Ending | None:
    """Return how a task ended; ``None`` while it has not, or if it was executed more than once."""
    if times := evidence.effects.get(label, 0):
        return Ending.EFFECT if times == 1 else None
    if label in evidence.refused:
        return Ending.REFUSED
    if evidence.letters.get(label):
        return Ending.LETTER
    return None if evidence.left.get(label) else Ending.NOTHING
