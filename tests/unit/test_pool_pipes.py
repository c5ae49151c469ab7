"""Jobs reach the processes of Celery's own pool, or are seen not to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def outcome_of(scenario: str) -> str:
    """Return what a scenario prints: it has a process of its own, for the numbers of its pipes."""
    command = [sys.executable, "-m", "tests.support.pool_loop", scenario]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.parametrize(
    ("scenario", "outcome"),
    [
        pytest.param("reused_number", "done", id="the number of a dead process is forgotten"),
        pytest.param("kept_number", "stranded", id="where it is not, a job is lost, and that is seen"),
        pytest.param("lost_meanwhile", "0", id="a process lost amid a reconnect leaves no descriptor"),
        pytest.param("stolen_job", "stranded", id="a job that never reached its process is stranded"),
        pytest.param("late_job", "done", id="one that reached it late is not"),
        pytest.param("stopped_process", "(True, False)", id="one that is not read is, one that runs is not"),
        pytest.param("taken_back", "(True, 0)", id="what is taken back amid a reconnect is not kept"),
        pytest.param("unread_job", "1", id="what a dead process has not read another one does"),
    ],
)
def test_a_job_reaches_a_process_or_is_seen_not_to(scenario: str, outcome: str) -> None:
    """With Celery's pool, real processes and real pipes."""
    assert outcome_of(scenario) == outcome
