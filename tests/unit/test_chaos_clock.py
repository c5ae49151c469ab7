"""A worker's wall clock can be set while it runs, and the clock of the run cannot."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from unlost.chaos.clock import faked, find_faketime, offset_ns, run_clock, set_ahead
from unlost.testing.waiting import wait_until

PROGRAM = """
import sys, time
from unlost.chaos.clock import sleep_under_faketime
sleep_under_faketime()
for _ in sys.stdin:
    time.sleep(0.01)
    print(time.time(), time.monotonic(), flush=True)
"""
SECONDS = 20


def test_the_run_clock_is_near_the_wall_clock() -> None:
    """It starts as the wall clock and advances with the monotonic one."""
    now = run_clock(offset_ns())
    first = now()
    assert abs(first - time.time_ns()) < 10**9
    assert now() >= first


def test_only_the_wall_clock_of_the_worker_is_set(tmp_path: Path) -> None:
    """Ahead, and right again, while the process runs; its monotonic clock stays as ours."""
    library = find_faketime()
    if library is None:
        pytest.skip("libfaketime is not installed")
    file = tmp_path / "worker.clock"
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **faked(library, file)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout

        def ahead() -> tuple[float, float]:
            print(file=process.stdin, flush=True)
            wall, monotonic = map(float, process.stdout.readline().split())  # type: ignore[union-attr]
            return wall - time.time(), monotonic - time.monotonic()

        for skew in (0, 120, -120, 0):
            set_ahead(file, timedelta(seconds=skew))
            wait_until(
                lambda skew=skew: abs(ahead()[0] - skew) < SECONDS,  # type: ignore[misc]
                timedelta(seconds=SECONDS),
                f"its clock is {skew} s ahead",
            )
            assert abs(ahead()[1]) < SECONDS
        process.stdin.close()
