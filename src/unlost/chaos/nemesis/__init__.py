"""Nemeses: what injures the system while it works. Each records every injury and heals what it injured."""

from unlost.chaos.nemesis.base import Injury, Nemesis, Scene
from unlost.chaos.nemesis.broker import (
    CloseConnections,
    DiskAlarm,
    FillQueue,
    KillBroker,
    LoseBinding,
    MemoryAlarm,
    PauseBroker,
    RestartBroker,
    StopApp,
)
from unlost.chaos.nemesis.cluster import KillNode, LeaderLoss, Partition, PauseNode, RollingRestart
from unlost.chaos.nemesis.conductor import Conductor, Schedule
from unlost.chaos.nemesis.links import LinkFault
from unlost.chaos.nemesis.store import KillStore
from unlost.chaos.nemesis.workers import ClockSkew, CrashAt, KillWorkers, OutOfMemory, StopWorkers

__all__ = [
    "ClockSkew",
    "CloseConnections",
    "Conductor",
    "CrashAt",
    "DiskAlarm",
    "FillQueue",
    "Injury",
    "KillBroker",
    "KillNode",
    "KillStore",
    "KillWorkers",
    "LeaderLoss",
    "LinkFault",
    "LoseBinding",
    "MemoryAlarm",
    "Nemesis",
    "OutOfMemory",
    "Partition",
    "PauseBroker",
    "PauseNode",
    "RestartBroker",
    "RollingRestart",
    "Scene",
    "Schedule",
    "StopApp",
    "StopWorkers",
]
