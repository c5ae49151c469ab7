"""Checkers: pure functions from a history to a verdict."""

from unlost.chaos.checker.accounts import Conserved, NoBystanders, Timely
from unlost.chaos.checker.activity import (
    Active,
    Hit,
    Recovery,
    faults,
    hits,
    outages,
    recoveries,
    slowest_recovery,
)
from unlost.chaos.checker.base import Anomalous, Checker, Finding, Judgement, Verdict, check, compose
from unlost.chaos.checker.rules import EffectsOnce, ExclusiveEnd, NothingFromNowhere, NothingLost

__all__ = [
    "Active",
    "Anomalous",
    "Checker",
    "Conserved",
    "EffectsOnce",
    "ExclusiveEnd",
    "Finding",
    "Hit",
    "Judgement",
    "NoBystanders",
    "NothingFromNowhere",
    "NothingLost",
    "Recovery",
    "Timely",
    "Verdict",
    "check",
    "compose",
    "faults",
    "hits",
    "outages",
    "recoveries",
    "slowest_recovery",
]
