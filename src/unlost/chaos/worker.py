"""A worker process of a chaos run: the user's own app, with its task bodies recorded.

Run as ``python -m unlost.chaos.worker``. Its standard input is held by the run; when that ends, however
it ends, so does the worker with its children.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from celery.signals import task_postrun, task_prerun, worker_process_init

from unlost.chaos.clock import FILE_VARIABLE, run_clock, sleep_under_faketime
from unlost.chaos.crashes import FOLDER_VARIABLE, CrashPoints, crash_where_armed
from unlost.chaos.crew import TELL_STACKS
from unlost.chaos.history import Recorder, fresh_file
from unlost.chaos.subject import broker_option, clock_option, load_app
from unlost.chaos.workload import Workload, make
from unlost.tasks.runtime import has_runtime, runtime_of

STDIN = 0
STDERR = 2


@click.command()
@click.option("--app", "app_path", required=True)
@click.option("--workload", "path", required=True)
@click.option("--options", default="{}")
@click.option("--history", type=click.Path(path_type=Path), required=True)
@click.option("--name", required=True)
@click.option("--concurrency", type=int, default=2)
@click.option("--clock-file", envvar=FILE_VARIABLE, hidden=True)
@click.option("--crashes", type=click.Path(path_type=Path), envvar=FOLDER_VARIABLE, hidden=True)
@broker_option
@clock_option
def main(
    app_path: str,
    path: str,
    options: str,
    history: Path,
    name: str,
    concurrency: int,
    broker: str,
    clock: int,
    clock_file: str | None,
    crashes: Path | None,
) -> None:
    """Run a worker of the workload's app until it is killed."""
    threading.Thread(target=die_with_the_run, args=(os.getpid(),), daemon=True).start()
    # Children inherit it; the descriptor is the log's, whatever Celery makes of sys.stderr.
    faulthandler.register(TELL_STACKS, file=STDERR, all_threads=True)
    if clock_file is not None:
        sleep_under_faketime()
    app = load_app(app_path, broker)
    workload = make(path, json.loads(options))
    recorder = recorder_of_process(history, name, run_clock(clock))
    record_bodies(workload, name, recorder)
    if crashes is not None:
        if not has_runtime(app):
            raise click.UsageError(f"unlost is not installed on {app_path}, so it has no crash points")
        runtime_of(app).points.observer = crash_where_armed(CrashPoints(crashes), recorder)
    arguments = ["worker", "--loglevel=INFO", f"--concurrency={concurrency}", f"--hostname={name}@%h"]
    app.worker_main([*arguments, "--without-gossip", "--without-mingle", "--without-heartbeat"])


def die_with_the_run(parent: int) -> None:
    """Kill this worker when the run that holds its standard input is gone; its children follow."""
    # Not through sys.stdin: a pool child closes that, and would wait for ever for a lock that this
    # thread held at the fork.
    while os.read(STDIN, 1):
        continue
    os.kill(parent, signal.SIGKILL)


def recorder_of_process(history: Path, name: str, now_ns: Callable[[], int]) -> Callable[[], Recorder]:
    """Return what returns the recorder of the current process: each has a file of its own."""
    recorder: dict[int, Recorder] = {}

    def mine() -> Recorder:
        if os.getpid() not in recorder:
            recorder[os.getpid()] = Recorder(fresh_file(history, name), now_ns=now_ns)
        return recorder[os.getpid()]

    return mine


def record_bodies(workload: Workload, name: str, mine: Callable[[], Recorder]) -> None:
    """Record start and end of every task body, in a file for each pool process."""

    def noting(f: str) -> Callable[..., None]:
        def note(task: Any, args: Any, kwargs: Any, **_: Any) -> None:
            value = workload.value_of(task.name, args, kwargs)
            if value is not None:
                mine().record(name, "ok", f, value, pid=os.getpid())

        return note

    worker_process_init.connect(lambda **_: mine(), weak=False)
    task_prerun.connect(noting("start"), weak=False)
    task_postrun.connect(noting("end"), weak=False)


if __name__ == "__main__":
    main()
