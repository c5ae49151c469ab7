"""Checkers: pure functions from a history to a verdict."""

from unlost.chaos.checker.activity import (
    Active,
    Hit,
    Recovery,
    faults,
    hits,
    recoveries,
    slowest_recovery,
)
from unlost.chaos.checker.base import Anomalous, Checker, Finding, Judgement, Verdict, check, compose
from unlost.chaos.checker.rules import EffectsOnce, ExclusiveEnd, NothingFromNowhere, NothingLost

__all__ = [
    "Active",
    "Anomalous",
    "Checker",
    "EffectsOnce",
    "ExclusiveEnd",
    "Finding",
    "Hit",
    "Judgement",
    "NothingFromNowhere",
    "NothingLost",
    "Recovery",
    "Verdict",
    "check",
    "compose",
    "faults",
    "hits",
    "recoveries",
    "slowest_recovery",
]
