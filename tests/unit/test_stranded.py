"""Which of a pool's jobs nobody is going to run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from unlost.tasks.stranded import Watch

PATIENCE = timedelta(seconds=10)
BEGUN = {7, 8}


@dataclass(eq=False)
class Process:
    """A child, as far as it matters."""

    pid: int


@dataclass(eq=False)
class Job:
    """What billiard knows of a job."""

    _job: int
    _write_to: Process | None = None
    _scheduled_for: Process | None = None
    _accepted: bool = False
    _worker_pid: int | None = None
    done: bool = False

    def ready(self) -> bool:
        """Whether its result is there."""
        return self.done


def has_begun(job: Job) -> bool:
    """Whether the process that has accepted a job has begun it."""
    return job._worker_pid in BEGUN


def numbers(watch: Watch, jobs: list[Job], now: float) -> list[int]:
    """Return the numbers of the stranded jobs."""
    found: list[Any] = watch.stranded(jobs, has_begun, [], now)
    return [job._job for job in found]


def test_a_job_that_an_idle_process_does_not_accept_is_stranded_after_the_patience() -> None:
    """It was written to a process that runs nothing, and nothing happens."""
    watch, jobs = Watch(PATIENCE), [Job(1, _write_to=Process(7))]
    assert [numbers(watch, jobs, now) for now in (100.0, 109.0, 110.0)] == [[], [], [1]]


def test_a_job_behind_a_running_one_waits_for_as_long_as_that_runs() -> None:
    """The clock starts when its process has become idle."""
    watch = Watch(PATIENCE)
    running = Job(1, _accepted=True, _worker_pid=7)
    behind = Job(2, _write_to=Process(7))
    assert numbers(watch, [running, behind], 0.0) == []
    assert numbers(watch, [running, behind], 1000.0) == []
    running.done = True
    assert numbers(watch, [running, behind], 1001.0) == []
    assert numbers(watch, [running, behind], 1011.0) == [2]


def test_a_job_that_is_accepted_in_time_starts_no_clock() -> None:
    """Accepting ends the wait, and a job of the same number later starts anew."""
    watch, job = Watch(PATIENCE), Job(1, _write_to=Process(7))
    assert numbers(watch, [job], 0.0) == []
    job._accepted, job._worker_pid = True, 7
    assert numbers(watch, [job], 9.0) == []
    job._accepted = False
    assert numbers(watch, [job], 11.0) == []


def test_a_job_that_was_not_written_yet_waits_while_anything_runs() -> None:
    """With all children idle it would have been written at once."""
    watch, waiting = Watch(PATIENCE), Job(2)
    busy = Job(1, _accepted=True, _worker_pid=7)
    assert [numbers(watch, [busy, waiting], now) for now in (0.0, 50.0)] == [[], []]
    assert [numbers(watch, [waiting], now) for now in (60.0, 70.0)] == [[], [2]]


def test_a_job_that_waits_for_a_process_to_start_is_not_stranded() -> None:
    """The pool has it, and would run it as well: also one that it took back from a process that has ended."""
    watch, waiting = Watch(PATIENCE), Job(1, _write_to=Process(7))
    for now in (0.0, 60.0):
        assert watch.stranded([waiting], has_begun, [waiting], now) == []
    assert watch.stranded([waiting], has_begun, [], 61.0) == []
    assert watch.stranded([waiting], has_begun, [], 71.0) == [waiting]


def test_a_job_that_its_process_has_not_begun_is_stranded() -> None:
    """The process is gone and buried, does not read what it was given, or the job was lost on the way."""
    watch = Watch(PATIENCE)
    jobs = [Job(1, _accepted=True, _worker_pid=9), Job(2, _accepted=True, _worker_pid=7)]
    assert [numbers(watch, jobs, now) for now in (0.0, 10.0)] == [[], [1]]
