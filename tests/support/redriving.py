"""Redrives for tests: a child process that sends letters back and dies at a given point.

:func:`main` runs in a child (:mod:`tests.support.forks`), redrives a queue and kills itself with SIGKILL at
the n-th passing of a point: while letters are taken and published, before a batch is in the journal, in the
middle of a line, after it, and after the batch was acked.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.support.forks import Ended, Forks
from unlost.deadletter import DeadLetters, Pace
from unlost.deadletter.hold import Held, Hold
from unlost.deadletter.journal import Journal


class Point(StrEnum):
    """Where a redrive can be killed."""

    TAKEN = "taken"
    CONFIRMED = "confirmed"
    TORN = "torn"
    JOURNALED = "journaled"
    ACKED = "acked"


@dataclass(frozen=True)
class Kill:
    """Die at the ``nth`` passing of a point."""

    point: Point
    nth: int


@dataclass(frozen=True)
class Errand:
    """What the child is to do: all letters of a queue, in windows, with a journal in a folder."""

    url: str
    queue: str
    folder: str
    window: int


def run_and_die(children: Forks, errand: Errand, kill: Kill | None, cut_at: int | None = None) -> Ended:
    """Redrive in a child that may lose its connection at the ``cut_at``-th letter, and dies as said."""
    return children.run({"errand": asdict(errand), "kill": asdict(kill) if kill else None, "cut_at": cut_at})


class _Fuse:
    def __init__(self, kill: Kill) -> None:
        self._kill = kill
        self._passed = 0

    def burns(self, point: Point) -> bool:
        """Whether this passing is the one to die at."""
        self._passed += point is self._kill.point
        return point is self._kill.point and self._passed == self._kill.nth

    def pass_by(self, point: Point) -> None:
        """Die if this is the passing."""
        if self.burns(point):
            _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(fuse: _Fuse) -> None:
    append, ack, following = Journal._append, Hold.ack, Hold._next

    def dangerous_append(self: Journal, lines: list[dict[str, Any]]) -> None:
        if lines and "sent" in lines[0]:
            fuse.pass_by(Point.CONFIRMED)
            if fuse.burns(Point.TORN):
                self._write(json.dumps(lines[0]).encode()[:17])
                _die()
        append(self, lines)
        if lines and "sent" in lines[0]:
            fuse.pass_by(Point.JOURNALED)

    def dangerous_ack(self: Hold, batch: Sequence[Held]) -> None:
        ack(self, batch)
        if batch:
            fuse.pass_by(Point.ACKED)

    def dangerous_next(self: Hold) -> Held | None:
        fuse.pass_by(Point.TAKEN)
        return following(self)

    Journal._append = dangerous_append  # type: ignore[method-assign]
    Hold.ack = dangerous_ack  # type: ignore[method-assign]
    Hold._next = dangerous_next  # type: ignore[method-assign]


def _cut_at(letter: int) -> None:
    following, left = Hold._next, [letter]

    def cut_next(self: Hold) -> Held | None:
        left[0] -= 1
        if left[0] == 0:
            self._connection.transport.sock.shutdown(socket.SHUT_RDWR)
        return following(self)

    Hold._next = cut_next  # type: ignore[method-assign]


def main(settings: dict[str, Any]) -> None:
    """Redrive, and meet what the settings say."""
    if settings["cut_at"]:
        _cut_at(settings["cut_at"])
    if settings["kill"]:
        _arm(_Fuse(Kill(Point(settings["kill"]["point"]), settings["kill"]["nth"])))
    errand = Errand(**settings["errand"])
    desk = DeadLetters(errand.url, folder=Path(errand.folder), actor="tester")
    report = desk.redrive(errand.queue, pace=Pace(canary=0, window=errand.window))
    print(json.dumps({"sent": report.sent, "acked": report.acked, "clean": report.is_clean}))
