"""What a guardian kills is dead, with all that it has brought forth."""

from __future__ import annotations

import os
import sys
import uuid
from datetime import timedelta
from pathlib import Path

import pytest

from unlost.testing.brokers.guardian import Guardian, descendants
from unlost.testing.waiting import wait_until

#: A server that brings forth children without a pause, each in a session of its own, as PostgreSQL's are.
BREEDER = """
import os, signal, time
for _ in range(2000):
    if os.fork() == 0:
        os.setsid()
        signal.pause()
        os._exit(0)
    time.sleep(0.001)
signal.pause()
"""


def running(marker: str) -> list[Path]:
    """Return the processes that were started with a marker, but for those that only wait to be reaped."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (process / "cmdline").read_text():
                found.append(process)
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_no_child_of_a_killed_server_is_left(tmp_path: Path) -> None:
    """A server that is killed while it forks leaves nobody, and kill returns when all are gone."""
    marker = uuid.uuid4().hex
    guardian = Guardian(
        {
            "directory": str(tmp_path),
            "log": str(tmp_path / "log"),
            "server": [sys.executable, "-c", BREEDER, marker],
            "environ": dict(os.environ),
            "family": True,
        }
    )
    guardian.start()
    server = guardian.pids()["server"]
    assert server is not None
    wait_until(lambda: len(descendants(server)) > 20, timedelta(seconds=30), "it has children")
    guardian.kill()
    assert running(marker) == []
