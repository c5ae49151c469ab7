"""Chaos runs: load, nemesis, heal, drain, check.

The names below are the kit for users' tests; they load on first use. See ``docs/chaos.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unlost.chaos.checker import Active as Active
    from unlost.chaos.checker import Conserved as Conserved
    from unlost.chaos.checker import EffectsOnce as EffectsOnce
    from unlost.chaos.checker import ExclusiveEnd as ExclusiveEnd
    from unlost.chaos.checker import NoBystanders as NoBystanders
    from unlost.chaos.checker import NothingFromNowhere as NothingFromNowhere
    from unlost.chaos.checker import NothingLost as NothingLost
    from unlost.chaos.checker import Timely as Timely
    from unlost.chaos.effects import effects_in_log as effects_in_log
    from unlost.chaos.effects import effects_in_table as effects_in_table
    from unlost.chaos.kit import Chaos as Chaos
    from unlost.chaos.kit import Outcome as Outcome
    from unlost.chaos.nemesis import ClockSkew as ClockSkew
    from unlost.chaos.nemesis import CloseConnections as CloseConnections
    from unlost.chaos.nemesis import CrashAt as CrashAt
    from unlost.chaos.nemesis import DiskAlarm as DiskAlarm
    from unlost.chaos.nemesis import FillQueue as FillQueue
    from unlost.chaos.nemesis import KillBroker as KillBroker
    from unlost.chaos.nemesis import KillNode as KillNode
    from unlost.chaos.nemesis import KillStore as KillStore
    from unlost.chaos.nemesis import KillWorkers as KillWorkers
    from unlost.chaos.nemesis import LeaderLoss as LeaderLoss
    from unlost.chaos.nemesis import LinkFault as LinkFault
    from unlost.chaos.nemesis import LoseBinding as LoseBinding
    from unlost.chaos.nemesis import MemoryAlarm as MemoryAlarm
    from unlost.chaos.nemesis import OutOfMemory as OutOfMemory
    from unlost.chaos.nemesis import Partition as Partition
    from unlost.chaos.nemesis import PauseBroker as PauseBroker
    from unlost.chaos.nemesis import PauseNode as PauseNode
    from unlost.chaos.nemesis import RestartBroker as RestartBroker
    from unlost.chaos.nemesis import RollingRestart as RollingRestart
    from unlost.chaos.nemesis import StopApp as StopApp
    from unlost.chaos.nemesis import StopWorkers as StopWorkers
    from unlost.chaos.workload import Workload as Workload

_CHECKERS = (
    "Active",
    "Conserved",
    "EffectsOnce",
    "ExclusiveEnd",
    "NoBystanders",
    "NothingFromNowhere",
    "NothingLost",
    "Timely",
)
_NEMESES = (
    "ClockSkew",
    "CloseConnections",
    "CrashAt",
    "DiskAlarm",
    "FillQueue",
    "KillBroker",
    "KillNode",
    "KillStore",
    "KillWorkers",
    "LeaderLoss",
    "LinkFault",
    "LoseBinding",
    "MemoryAlarm",
    "OutOfMemory",
    "Partition",
    "PauseBroker",
    "PauseNode",
    "RestartBroker",
    "RollingRestart",
    "StopApp",
    "StopWorkers",
)
_HOMES = {
    **dict.fromkeys(_CHECKERS, "unlost.chaos.checker"),
    **dict.fromkeys(_NEMESES, "unlost.chaos.nemesis"),
    "Chaos": "unlost.chaos.kit",
    "Outcome": "unlost.chaos.kit",
    "Workload": "unlost.chaos.workload",
    "effects_in_log": "unlost.chaos.effects",
    "effects_in_table": "unlost.chaos.effects",
}

__all__ = [  # noqa: PLE0604 - they are all strings
    *_CHECKERS,
    *_NEMESES,
    "Chaos",
    "Outcome",
    "Workload",
    "effects_in_log",
    "effects_in_table",
]


def __getattr__(name: str) -> object:
    """Import a public name from the module that defines it."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'unlost.chaos' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
