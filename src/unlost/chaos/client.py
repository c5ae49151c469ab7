"""The publishing process of a chaos run: invokes, publishes, and records what it was told.

Run as ``python -m unlost.chaos.client``; prints the number of messages done, a line for every few.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
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
                batch = list(islice(numbers, workload.batch))
            if not batch:
                return
            publish(workload, recorder, name, batch)

    with Recorder(fresh_file(history, "client"), now_ns=run_clock(clock)) as recorder:
        recorder.record("client", "info", "workload", per_message=len(workload.promises(0)))
        crew = [threading.Thread(target=run, args=(f"client-{i}",)) for i in range(threads)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()


def publish(workload: Workload, recorder: Recorder, name: str, numbers: Sequence[int]) -> None:
    """Publish some messages with one call; ``fail`` is only recorded where it is proved for all of them."""
    promises = [value for number in numbers for value in workload.promises(number)]
    for value in promises:
        recorder.record(name, "invoke", "publish", value)
    kind: OpType = "ok"
    error = ""
    try:
        if len(numbers) == 1:
            workload.publish(numbers[0])
        else:
            workload.publish_many(numbers)
    except Exception as exc:  # noqa: BLE001 - whatever else it was, nobody can tell
        kind = "fail" if len(numbers) == 1 and isinstance(exc, _PROVED) else "info"
        error = repr(exc)
    for value in promises:
        recorder.record(name, kind, "publish", value, error=error)
    sys.stdout.write(f"{numbers[-1] + 1}\n")
    sys.stdout.flush()


def _paced(messages: int, rate: float) -> Iterator[int]:
    begin = time.monotonic()
    for number in range(messages):
        if rate:
            time.sleep(max(0.0, begin + number / rate - time.monotonic()))
        yield number


if __name__ == "__main__":
    main()
