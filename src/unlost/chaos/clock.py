"""The clock of a run, which no nemesis can set, and the clocks of workers, which one can.

Histories order what several processes did. Their wall clocks are not fit for that once a nemesis sets one, so
every process of a run adds the same offset to the host's monotonic clock. libfaketime
(https://github.com/wolfcw/libfaketime) sets the wall clock of single processes and leaves the monotonic one.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

#: Carries the offset to the processes of a run.
OFFSET_VARIABLE = "UNLOST_CHAOS_CLOCK"

#: Names the file that tells the wall clock of a process.
FILE_VARIABLE = "FAKETIME_TIMESTAMP_FILE"

_LIBRARIES = (
    "/usr/lib/*/faketime/libfaketime.so.1",
    "/usr/lib*/faketime/libfaketime.so.1",
    "/usr/local/lib/faketime/libfaketime.so.1",
)


def offset_ns() -> int:
    """Return how far the wall clock is ahead of the monotonic one now."""
    return time.time_ns() - time.monotonic_ns()


def run_clock(offset: int) -> Callable[[], int]:
    """Return a clock of epoch nanoseconds that advances with the monotonic one."""
    return lambda: time.monotonic_ns() + offset


def find_faketime(root: Path = Path("/")) -> Path | None:
    """Return libfaketime, if it is installed."""
    found = (path for pattern in _LIBRARIES for path in sorted(root.glob(pattern.lstrip("/"))))
    return next(found, None)


def faked(library: Path, file: Path) -> Mapping[str, str]:
    """Return the variables of a process whose wall clock is told by a file; see :func:`set_ahead`."""
    set_ahead(file, timedelta(0))
    return {
        "LD_PRELOAD": str(library),
        FILE_VARIABLE: str(file),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


def sleep_under_faketime() -> None:
    """Let ``time.sleep`` of this process wait in select(2).

    libfaketime 0.9.10 answers EINVAL to the clock_nanosleep(2) that Python sleeps with when it is to leave
    the monotonic clock alone.
    """
    time.sleep = lambda seconds, /: select.select([], [], [], float(seconds)) and None


def set_ahead(file: Path, ahead: timedelta) -> None:
    """Set a faked clock ahead of the true one, or behind it; it takes effect within a second."""
    # Renamed, so that nobody reads half of it.
    fresh = file.with_suffix(".new")
    fresh.write_text(f"{ahead.total_seconds():+.3f}\n")
    fresh.rename(file)
