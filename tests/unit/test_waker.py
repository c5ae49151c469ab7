"""A stopped process goes on when it is told, and when whoever stopped it dies."""

from __future__ import annotations

import subprocess
import sys

from tests.support.processes import sleeper, wait_for_state
from unlost.chaos import waker

STOPPED, SLEEPING = "T", "S"

#: Stops a process and then waits for ever, as a run that is about to be killed does.
RUN = f"""
import subprocess, sys
waker = subprocess.Popen([sys.executable, {waker.__file__!r}], stdin=subprocess.PIPE)
waker.stdin.write(("stop " + sys.argv[1] + "\\n").encode())
waker.stdin.flush()
sys.stdin.read()
"""


def test_a_process_is_stopped_and_continued() -> None:
    """On the word, each answered when it is done."""
    command = [sys.executable, waker.__file__]
    with (
        sleeper() as victim,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as helper,
    ):
        assert helper.stdin
        assert helper.stdout
        for order, state in (("stop", STOPPED), ("continue", SLEEPING), ("stop", STOPPED)):
            print(f"{order} {victim.pid}", file=helper.stdin, flush=True)
            assert helper.stdout.readline() == "\n"
            wait_for_state(victim.pid, state)
        helper.stdin.close()
        wait_for_state(victim.pid, SLEEPING)


def test_a_process_goes_on_when_the_run_that_stopped_it_is_killed() -> None:
    """SIGKILL leaves the run no chance to clean up; its helper does."""
    with sleeper() as victim:
        command = [sys.executable, "-c", RUN, str(victim.pid)]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as run:
            wait_for_state(victim.pid, STOPPED)
            run.kill()
        wait_for_state(victim.pid, SLEEPING)


def test_a_process_that_is_gone_stops_nobody() -> None:
    """A victim that ended meanwhile is passed over."""
    with sleeper() as victim:
        victim.kill()
        victim.wait()
        done = subprocess.run(
            [sys.executable, waker.__file__],
            input=f"stop {victim.pid}\n",
            text=True,
            capture_output=True,
            check=True,
        )
    assert done.stdout == "\n"
