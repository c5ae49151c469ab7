"""Names for processes, so that what a dead one left behind can be told from a live one's."""

from __future__ import annotations

import os
import platform
from datetime import timedelta
from pathlib import Path

# A process's start is told relative to the clock, which may be corrected while it lives.
_CLOCK_CORRECTION = timedelta(seconds=10)


def own_name() -> str:
    """Name this process so that neither a reboot nor a reused pid brings the name back."""
    import psutil

    return f"{_place()}/{os.getpid()}/{psutil.Process().create_time():.2f}"


def is_gone(name: str) -> bool:
    """Whether the process of that name ran here and has ended; of other machines nothing is known."""
    import psutil

    place, pid, started = name.split("/")
    if place != _place():
        return False
    try:
        process = psutil.Process(int(pid))
        difference = abs(process.create_time() - float(started))
        ended = process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    return ended or difference > _CLOCK_CORRECTION.total_seconds()


def _place() -> str:
    """Name the set of processes within which a pid means something: one boot, one pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{Path('/proc/self/ns/pid').readlink()}"
    except FileNotFoundError:
        return platform.node()
