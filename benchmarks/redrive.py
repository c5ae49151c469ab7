"""Dead letters sent back per second, and the memory of a look; the last line is JSON.

Letters of a task, with all that a worker writes into them, lie in a quorum queue of letters and are sent
back to a quorum work queue by the operator's desk: each publish confirmed, then in the journal and on disk,
then acked. Rounds are interleaved, and the median counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.apps import WORK, declare, shop
from tests.support.letters import LETTERS, numbered, put
from tests.support.raw_amqp import open_channel
from unlost.deadletter import DeadLetters, Pace, Report
from unlost.idempotency.sql import SqlStore
from unlost.testing.brokers import Vhost, start_broker

#: The canary is part of every redrive, but its wait is not speed.
PACE = Pace(canary=0)


@dataclass(frozen=True)
class Bench:
    """A vhost with the shop's topology, and a folder."""

    vhost: Vhost
    folder: Path
    store: SqlStore


def watched(bench: Bench) -> Report:
    """Send all back, looking at what dies again."""
    return DeadLetters(bench.vhost.amqp_url, folder=bench.folder).redrive(LETTERS, pace=PACE)


def blind(bench: Bench) -> Report:
    """Send all back without a look at what becomes of it."""
    return DeadLetters(bench.vhost.amqp_url, folder=bench.folder).redrive(LETTERS, pace=PACE, blind=True)


def with_store(bench: Bench) -> Report:
    """Send all back that the ledger does not know as done."""
    desk = DeadLetters(bench.vhost.amqp_url, folder=bench.folder, rows=bench.store)
    return desk.redrive(LETTERS, pace=PACE)


WAYS: dict[str, Callable[[Bench], Report]] = {"watched": watched, "blind": blind, "with_store": with_store}


def run(bench: Bench, letters: int, rounds: int) -> dict[str, float]:
    """Let every way send the letters back in every round, and return the median rates."""
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(rounds):
        for name, way in WAYS.items():
            put(bench.vhost.amqp_url, numbered(letters))
            began, used = time.perf_counter(), time.process_time()
            report = way(bench)
            rate = letters / (time.perf_counter() - began)
            own = (time.process_time() - used) / letters * 1e6
            if report.sent != letters or not report.is_clean:
                raise SystemExit(f"{name}: {report}")
            found[name].append(rate)
            _say(f"round {number + 1}  {name:12} {rate:10,.0f}/s  {own:4.0f} µs of this process for each")
            with open_channel(bench.vhost.amqp_url) as channel:
                channel.queue_purge(WORK)
    return {name: statistics.median(rates) for name, rates in found.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--letters", type=int, default=30_000, help="in each round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as folder,
        start_broker(None, environ=os.environ) as broker,
        broker.fresh_vhost() as vhost,
    ):
        declare(vhost, shop())
        store = SqlStore(f"sqlite:///{Path(folder) / 'ledger.sqlite'}")
        store.create_schema()
        rates = run(Bench(vhost, Path(folder), store), options.letters, options.rounds)
    for name, rate in rates.items():
        _say(f"median   {name:12} {rate:10,.0f}/s")
    figures = {f"{name}_per_second": round(rate) for name, rate in rates.items()}
    _say(json.dumps({"letters": options.letters, "rounds": options.rounds, **figures}))
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
