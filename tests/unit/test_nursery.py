"""Workers that are forked instead of started."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.nursery import Nursery
from unlost.testing.waiting import wait_until

SOON = 60


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """One for all tests."""
    with Nursery() as made:
        yield made


@pytest.mark.parametrize(
    ("arguments", "status", "said"), [("--version", 0, "5."), ("nonsense", 2, "nonsense")]
)
def test_it_runs_celery_and_tells_how_it_ended(
    nursery: Nursery, tmp_path: Path, arguments: str, status: int, said: str
) -> None:
    """The command line, the output and the exit status are those of the program."""
    child = nursery.start([arguments], os.environ, tmp_path / "log")
    assert child.wait(SOON) == status
    assert child.poll() == status
    assert said in (tmp_path / "log").read_text()


def test_a_child_can_be_killed(nursery: Nursery, tmp_path: Path) -> None:
    """A child that runs is seen running, and one that was killed has ended by that signal."""
    child = nursery.start(["shell", "--python"], os.environ, tmp_path / "log")
    wait_until(lambda: Path(f"/proc/{child.pid}").exists(), timedelta(seconds=SOON), "it runs")
    child.send_signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0)
    child.kill()
    assert child.wait(SOON) == -signal.SIGKILL
    child.terminate()
