"""What a checker is, and how several make one judgement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from unlost.chaos.history import History, Op


class Verdict(StrEnum):
    """What a history proves. ``UNKNOWN`` is never a pass."""

    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"


def compose(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst: invalid over unknown over valid, as Jepsen's ``merge-valid`` does.

    Unlike there, no verdict at all is ``UNKNOWN``: who checks nothing proves nothing.
    """
    given = frozenset(verdicts)
    for worst in (Verdict.INVALID, Verdict.UNKNOWN, Verdict.VALID):
        if worst in given:
            return worst
    return Verdict.UNKNOWN


@dataclass(frozen=True, slots=True)
class Anomalous:
    """One thing that speaks against a pass.

    Attributes:
        kind: What is wrong, such as ``"lost"``; the same word for all of its kind.
        value: The promised effect or the queue it happened to; ``None`` if it concerns the whole run.
        explanation: One sentence for people.
        ops: The part of the history that concerns it, in order.
    """

    kind: str
    value: str | None
    explanation: str
    ops: tuple[Op, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """What one checker found.

    Attributes:
        checker: Its name.
        verdict: Its verdict.
        anomalies: Why it is not valid; empty if it is.
        figures: Counts, by name.
    """

    checker: str
    verdict: Verdict
    anomalies: tuple[Anomalous, ...] = ()
    figures: Mapping[str, int | float] = field(default_factory=dict, hash=False)


class Checker(Protocol):
    """A pure function of a history, with a name."""

    @property
    def name(self) -> str:
        """The name under which it reports."""

    def check(self, history: History) -> Finding:
        """Judge a history. An exception counts as ``UNKNOWN``."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What all checkers found together.

    Attributes:
        findings: One for each checker, in the order given.
        began_ns: Time of the first operation, from which reports count; ``None`` for an empty history.
    """

    findings: tuple[Finding, ...]
    began_ns: int | None = None

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all findings."""
        return compose(finding.verdict for finding in self.findings)

    @property
    def anomalies(self) -> tuple[Anomalous, ...]:
        """All anomalies, in the order of the findings."""
        return tuple(anomaly for finding in self.findings for anomaly in finding.anomalies)


def check(history: History, checkers: Sequence[Checker]) -> Judgement:
    """Ask every checker, and let none of them silence another by crashing."""
    began_ns = history[0].time_ns if history else None
    return Judgement(tuple(_ask(checker, history) for checker in checkers), began_ns)


def _ask(checker: Checker, history: History) -> Finding:
    try:
        return checker.check(history)
    except Exception as exc:  # noqa: BLE001 - whatever broke it, a checker that broke has proved nothing
        reason = f"{checker.name} broke: {type(exc).__name__}: {exc}"
        return Finding(checker.name, Verdict.UNKNOWN, (Anomalous("checker broke", None, reason),))
