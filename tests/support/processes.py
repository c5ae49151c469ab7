"""Child processes to stop and to kill."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from unlost.testing.waiting import wait_until

PATIENCE = timedelta(seconds=60)


@contextmanager
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that does nothing, and kill it at the end."""
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_state(pid: int, states: str) -> None:
    """Wait until the kernel shows one of these states for a process (proc(5))."""
    wait_until(lambda: state_of(pid) in states, PATIENCE, f"process {pid} is in state {states}")


def state_of(pid: int) -> str:
    """Return a process's state letter."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
