"""One process dies at an armed point, and the history knows it before."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from unlost.chaos.crashes import CrashPoints, crash_where_armed
from unlost.chaos.history import Recorder, load
from unlost.core.ids import MessageId
from unlost.tasks.crashpoints import Point

MESSAGE = MessageId("shop.charge", "1")


def test_an_armed_point_is_taken_once(tmp_path: Path) -> None:
    """Of several processes that come by one dies; nobody does where nothing is armed any more."""
    points = CrashPoints(tmp_path)
    assert not points.take("acking")
    points.arm("acking")
    assert points.is_armed("acking")
    assert [points.take("acking"), points.take("acking"), points.is_armed("acking")] == [True, False, False]
    points.arm("acking")
    points.disarm("acking")
    assert not points.take("acking")


def test_a_process_dies_where_it_is_armed_and_nowhere_else(tmp_path: Path) -> None:
    """It passes every other point, and leaves the operation with its pid, the point and the delivery."""
    points = CrashPoints(tmp_path / "points")
    points.folder.mkdir()
    points.arm("committed")
    pid = os.fork()
    if pid == 0:
        with Recorder(tmp_path / "history.jsonl") as recorder:
            strike = crash_where_armed(points, lambda: recorder)
            for point in (Point.ACQUIRED, Point.COMMITTED):
                strike(point, MESSAGE)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    (crash,) = load(tmp_path / "history.jsonl")
    assert (crash.process, crash.f) == ("nemesis", "crash")
    assert crash.extra == {"pids": [pid], "point": "committed", "delivery": "shop.charge[1]"}
