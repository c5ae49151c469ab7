"""Crashes at chosen moments of a delivery: armed by a nemesis, carried out by whichever process comes by.

A point is armed by a file in a folder of the run, which every worker sees, in a container too. Whoever
removes it dies: removing a file succeeds once. A worker looks for it only in runs with such a nemesis.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from unlost.chaos.history import Recorder
from unlost.core.ids import MessageId
from unlost.tasks.crashpoints import OF_THE_PARENT, Observer, Point

#: Where workers find the folder.
FOLDER_VARIABLE = "UNLOST_CHAOS_CRASHES"

#: What a crash is called in the history.
CRASH = "crash"


@dataclass(frozen=True)
class CrashPoints:
    """The points of a run at which the next process to come by dies.

    Args:
        folder: Of the files; an existing one.
    """

    folder: Path

    def arm(self, point: str) -> None:
        """Have the next process at a point die there."""
        self._file(point).touch()

    def is_armed(self, point: str) -> bool:
        """Whether no process has been there yet."""
        return self._file(point).exists()

    def disarm(self, point: str) -> None:
        """Let everybody pass again."""
        self._file(point).unlink(missing_ok=True)

    def take(self, point: str) -> bool:
        """Take an armed point, as one process of all can; whoever has taken it must die."""
        try:
            self._file(point).unlink()
        except FileNotFoundError:
            return False
        return True

    def _file(self, point: str) -> Path:
        return self.folder / point


def crash_where_armed(points: CrashPoints, recorder: Callable[[], Recorder]) -> Observer:
    """Return an observer that kills its process at armed points, and records that before.

    Args:
        points: Of the run.
        recorder: Returns the one of the current process.
    """

    def strike(point: Point, message: MessageId) -> None:
        if points.take(point):
            recorder().record(
                "nemesis", "info", CRASH, pids=_dying(point), point=str(point), delivery=str(message)
            )
            os.kill(os.getpid(), signal.SIGKILL)

    return strike


def _dying(point: Point) -> list[int]:
    """Return the processes that die: this one, and, if it is a worker's parent, its children with it."""
    children: list[int] = []
    if point in OF_THE_PARENT:
        with suppress(psutil.Error):
            children = [child.pid for child in psutil.Process().children()]
    return [os.getpid(), *children]
