"""The publishing process of a chaos run: invokes, publishes, and records what it was told.

Run as ``python -m unlost.chaos.client``; prints the number of messages done, a line for every few.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click

from unlost.chaos.clock import run_clock
from unlost.chaos.history import OpType, Recorder, fresh_file
from unlost.chaos.subject import broker_option, clock_option, load_app
from unlost.chaos.workload import Workload, make
from unlost.errors import AccessRefused, BrokerUnavailable, Refused, Unroutable

#: These prove that nothing of the publish is stored.
_PROVED = (Unroutable, Refused, BrokerUnavailable, AccessRefused)


@click.command()
@click.option("--app", required=True)
@click.option("--workload", "path", required=True)
@click.option("--options", default="{}")
@click.option("--history", type=click.Path(path_type=Path), required=True)
@click.option("--messages", type=int, required=True)
@click.option("--rate", type=float, default=0.0, help="Messages a second; 0 is as fast as they go.")
@click.option("--threads", type=int, default=1)
@broker_option
@clock_option
def main(
    app: str,
    path: str,
    options: str,
    history: Path,
    messages: int,
    rate: float,
    threads: int,
    broker: str,
    clock: int,
) -> None:
    """Publish the workload's messages."""
    load_app(app, broker)
    workload = make(path, json.loads(options))
    numbers = iter(_paced(messages, rate))
    lock = threading.Lock()

    def run(name: str) -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            publish_one(workload, recorder, name, number)

    with Recorder(fresh_file(history, "client"), now_ns=run_clock(clock)) as recorder:
        recorder.record("client", "info", "workload", per_message=len(workload.promises(0)))
        crew = [threading.Thread(target=run, args=(f"client-{i}",)) for i in range(threads)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()


def publish_one(workload: Workload, recorder: Recorder, name: str, number: int) -> None:
    """Publish one message; ``fail`` is only recorded where it is proved."""
    promises = workload.promises(number)
    for value in promises:
        recorder.record(name, "invoke", "publish", value)
    kind: OpType = "ok"
    error = ""
    try:
        workload.publish(number)
    except _PROVED as exc:
        kind, error = "fail", repr(exc)
    except Exception as exc:  # noqa: BLE001 - whatever else it was, nobody can tell
        kind, error = "info", repr(exc)
    for value in promises:
        recorder.record(name, kind, "publish", value, error=error)
    sys.stdout.write(f"{number + 1}\n")
    sys.stdout.flush()


def _paced(messages: int, rate: float) -> Iterator[int]:
    begin = time.monotonic()
    for number in range(messages):
        if rate:
            time.sleep(max(0.0, begin + number / rate - time.monotonic()))
        yield number


if __name__ == "__main__":
    main()
