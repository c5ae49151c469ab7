"""``make bench-idempotency``: what the ledger costs, as a ratio to plain Celery with the same guarantees.

For each store a queue is filled, then a worker of two processes empties it; throughput is measured from the
tenth part on, when all processes are at work. The two runs of a round (plain, unlost) follow each other, once
in this order and once in the other, and what counts is the median of the rounds' ratios, so that a machine
that grows slower strikes both. A pair runs the same body: nothing at all, or one row written, by plain Celery
in a transaction of its own in the same database.

SQLite is at ``synchronous=FULL``, PostgreSQL at ``synchronous_commit=on``, Redis at ``appendfsync everysec``
(its default; the last second is forgotten when the machine goes), and in a pair of its own at ``always``.
``no_store`` is unlost without a ledger.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import click
import redis
from kombu import Connection

from benchmarks import latency
from benchmarks.shape import QUEUE, topology_for
from unlost.broker.apply import apply
from unlost.broker.management import Management
from unlost.database.database import Database
from unlost.idempotency.none import NO_STORE
from unlost.testing.brokers import Broker, Vhost, start_broker
from unlost.testing.stores import start_store
from unlost.testing.waiting import wait_until

PATIENCE = timedelta(minutes=5)
LOOK = timedelta(seconds=0.5)

#: Bytes of a line of the files of times.
LINE = 21


@dataclass(frozen=True)
class Pair:
    """What is compared: a task on unlost with a store, and on plain Celery."""

    name: str
    kind: str
    task: str


PAIRS = (
    Pair("no_store_vs_hardened_celery", "none", "bench.nothing"),
    Pair("redis_vs_hardened_celery", "redis everysec", "bench.nothing"),
    Pair("redis_always_vs_hardened_celery", "redis always", "bench.nothing"),
    Pair("postgresql_unit_of_work_vs_hardened_celery", "postgresql", "bench.write_row"),
    Pair("sqlite_vs_hardened_celery", "sqlite", "bench.write_row"),
)


@click.command()
@click.option("--tasks", type=int, default=1000, show_default=True, help="In each run.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Of each pair.")
@click.option("--prefetch", type=int, default=1, show_default=True, help="The prefetch multiplier.")
def main(tasks: int, rounds: int, prefetch: int) -> None:
    """Measure; the last line is one JSON object of ratios."""
    ratios: dict[str, float] = {}
    with start_broker(environ=os.environ) as broker, ExitStack() as stack:
        stores = {
            kind: stack.enter_context(url_of(kind)) for kind in dict.fromkeys(pair.kind for pair in PAIRS)
        }
        for pair in PAIRS:
            rates = [
                compare(broker, pair, stores[pair.kind], tasks, prefetch, plain_first=not number % 2)
                for number in range(rounds)
            ]
            a, b = (statistics.median(each) for each in zip(*rates, strict=True))
            by_round = sorted(safe / plain for plain, safe in rates)
            ratios[pair.name] = round(statistics.median(by_round), 3)
            click.echo(
                f"{pair.name}: {a:.0f}/s plain, {b:.0f}/s unlost (prefetch multiplier {prefetch}); "
                f"ratios {by_round[0]:.2f} to {by_round[-1]:.2f}"
            )
        for kind, url in stores.items():
            if url == NO_STORE:
                continue
            p50, p99 = latency.of(url)
            click.echo(f"{kind}: acquire and complete take {p50:.2f} ms (p50), {p99:.2f} ms (p99)")
    click.echo(json.dumps(ratios))


def compare(
    broker: Broker, pair: Pair, store: str, tasks: int, prefetch: int, *, plain_first: bool
) -> tuple[float, float]:
    """Return tasks a second of plain Celery and of unlost, measured one after the other."""
    rates = {}
    for is_plain in (plain_first, not plain_first):
        with broker.fresh_vhost() as vhost:
            places = ("", store) if is_plain else (store, "")
            rates[is_plain] = throughput(vhost, pair, *places, tasks, prefetch)
    return rates[True], rates[False]


@contextmanager
def url_of(kind: str) -> Iterator[str]:
    """Yield the URL of an empty store of a kind."""
    if kind == "none":
        yield NO_STORE
    elif kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/bench.sqlite"
    else:
        server, _, fsync = kind.partition(" ")
        with start_store(server, os.environ) as started, started.fresh() as url:
            if fsync:
                sync_seldom(url, fsync)
            yield url


def sync_seldom(url: str, fsync: str) -> None:
    """Set how often Redis syncs its log."""
    with redis.Redis.from_url(url) as client:
        client.config_set("appendfsync", fsync)


def throughput(vhost: Vhost, pair: Pair, store: str, database: str, tasks: int, prefetch: int) -> float:
    """Fill the queue, let a worker empty it, and return tasks a second."""
    with tempfile.TemporaryDirectory() as folder:
        times = Path(folder) / "times"
        times.mkdir()
        environ = {
            **os.environ,
            "CELERY_BROKER_URL": vhost.amqp_url,
            "BENCH_STORE": store,
            "BENCH_PREFETCH": str(prefetch),
            "BENCH_TIMES": str(times),
        }
        if pair.task == "bench.write_row":
            make_table(store or database)
            environ["BENCH_DATABASE"] = database or store
        declare(vhost, store)
        fill(environ, pair.task, tasks)
        with worker(environ, Path(folder) / "log"):
            # Looked at seldom, and only at sizes: on two cores whoever watches is part of the load.
            wait_until(lambda: done(times) >= tasks, PATIENCE, f"{tasks} tasks are done", poll=LOOK)
        measured = moments(times)[tasks // 10 :]
        return (len(measured) - 1) / (measured[-1] - measured[0])


def make_table(url: str) -> None:
    """Make the table that the bodies write to."""
    opened = Database(url)
    with opened.transaction() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS bench_rows")
        kind = "SERIAL" if opened.dialect.name == "postgresql" else "INTEGER"
        connection.exec_driver_sql(f"CREATE TABLE bench_rows (id {kind} PRIMARY KEY, number INTEGER)")
    opened.dispose()


def declare(vhost: Vhost, store: str) -> None:
    """Declare what the run needs: the topology, or one quorum queue."""
    if store:
        with Management(vhost.management_url, vhost.name) as management:
            apply(topology_for(store), management)
        return
    with Connection(vhost.amqp_url) as connection:
        connection.default_channel.queue_declare(
            QUEUE, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"}
        )


def fill(environ: Mapping[str, str], task: str, tasks: int) -> None:
    """Publish all tasks."""
    code = f"""
from benchmarks.app import app
task = app.tasks[{task!r}]
for number in range({tasks}):
    task.apply_async((number,), queue={QUEUE!r})
"""
    subprocess.run([sys.executable, "-c", code], env=dict(environ), check=True)


@contextmanager
def worker(environ: Mapping[str, str], log: Path) -> Iterator[None]:
    """Run a worker of two processes."""
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.app:app", "worker", "--concurrency=2"]
    flags = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=ERROR"]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, *flags], env=dict(environ), stdout=out, stderr=out)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def done(folder: Path) -> int:
    """Return how many tasks have ended."""
    return sum(path.stat().st_size for path in folder.iterdir()) // LINE


def moments(folder: Path) -> list[float]:
    """Return when each task ended, in order."""
    return sorted(float(line) for path in folder.iterdir() for line in path.read_text().splitlines())


if __name__ == "__main__":
    main()
