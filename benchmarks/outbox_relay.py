"""How many messages a second one relay publishes from an outbox, confirmed, on quorum queues.

    python -m benchmarks.outbox_relay [--messages 30000]

The messages are what ``delay()`` of a task with a payload renders. Brokers and databases are those that the
tests use; PostgreSQL and SQLite sync every commit. The median of the rounds counts. The last line is one JSON
object: ``relay_postgresql_per_s`` and ``relay_sqlite_per_s``. ``benchmarks/publish.py`` runs this, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from celery import Celery
from kombu import Connection
from pydantic import BaseModel

import unlost
from benchmarks.raw import empty
from unlost.broker.apply import apply
from unlost.broker.management import Management
from unlost.broker.publisher import Publisher
from unlost.core.message import Outgoing
from unlost.database.database import Database
from unlost.outbox.relay import Options, Relay, sending
from unlost.outbox.store import OutboxStore
from unlost.outbox.wakeup import Poll
from unlost.outbox.writer import write
from unlost.tasks.runtime import runtime_of
from unlost.tasks.sink import captured
from unlost.testing.brokers import Vhost, start_broker
from unlost.testing.stores import start_store
from unlost.topology.model import Delay, Topology, WorkQueue

WORK = "shop.work"
SHOP = Topology(name="shop", queues={WORK: WorkQueue()}, delay=Delay(levels=2))
#: Prints a line.
Say = Callable[[str], None]

WARM_UP = 2000
FILL = 5000


class Charge(BaseModel):
    """What an order is."""

    order_id: int
    amount: int = 100
    currency: str = "EUR"


class Pay(unlost.ReliableTask):
    """A task that is only published."""

    name = "shop.pay"
    queue = WORK
    payload = Charge

    def run(self, charge: Charge) -> None:
        """Never run."""


def relay_rates(
    vhost: Vhost, messages: int, *, rounds: int = 3, window: int = 200, say: Say = lambda _line: None
) -> dict[str, float]:
    """Return messages a second through one relay, by database.

    Args:
        vhost: Where to; the topology is applied to it.
        messages: How many to relay from each database in each round.
        rounds: How many times; the median counts.
        window: How many confirms are in flight.
        say: Told of each round.
    """
    with Management(vhost.management_url, vhost.name) as management:
        apply(SHOP, management)
    rates = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        start_store("postgresql", os.environ) as server,
        server.fresh() as postgresql,
    ):
        template = _rendered(vhost, Path(folder))
        for name, url in (("postgresql", postgresql), ("sqlite", f"sqlite:///{folder}/outbox.sqlite")):
            found = []
            for count in (WARM_UP, *[messages] * rounds):
                found.append(_rate(url, vhost, template, count, window))
                say(f"relay    relay_{name:18} {found[-1]:10,.0f}/s")
            rates[f"relay_{name}_per_s"] = statistics.median(found[1:])
    return rates


def _rate(url: str, vhost: Vhost, template: Outgoing, messages: int, window: int) -> float:
    database, publisher = Database(url), Publisher(Connection(vhost.amqp_url))
    store = OutboxStore(database)
    store.create_schema()
    relay = Relay(store, sending(publisher, window), Poll(), Options())
    try:
        _fill(database, template, messages)
        began = time.perf_counter()
        relay.drain(threading.Event())
        took = time.perf_counter() - began
    finally:
        publisher.close()
        database.dispose()
    if (relay.tally.delivered, empty(vhost.amqp_url, WORK)) != (messages, messages):
        raise RuntimeError(f"not everything was delivered once: {relay.tally}")
    return messages / took


def _fill(database: Database, template: Outgoing, count: int) -> None:
    for start in range(0, count, FILL):
        copies = [_copy(template, f"{start + n:032x}") for n in range(min(FILL, count - start))]
        with database.transaction() as connection:
            write(connection, copies)


def _copy(template: Outgoing, task_id: str) -> Outgoing:
    return replace(
        template,
        headers={**template.headers, "id": task_id, "root_id": task_id},
        properties={**template.properties, "message_id": f"{task_id}.0.1", "correlation_id": task_id},
    )


def _rendered(vhost: Vhost, folder: Path) -> Outgoing:
    """Return what ``delay()`` renders."""
    app = Celery("shop", broker=vhost.amqp_url, set_as_current=False)
    unlost.install(app, topology=SHOP, store=f"sqlite:///{folder}/ledger.sqlite")
    task = app.register_task(Pay())
    with captured(runtime_of(app).sink) as kept:
        task.delay(order_id=1)
    app.close()
    (message,) = kept.messages
    return message


@contextmanager
def _fresh_vhost() -> Iterator[Vhost]:
    with start_broker(environ=os.environ) as broker, broker.fresh_vhost() as vhost:
        yield vhost


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window", type=int, default=200)
    given = parser.parse_args()
    with _fresh_vhost() as vhost:
        rates = relay_rates(vhost, given.messages, rounds=given.rounds, window=given.window, say=print)
    print(json.dumps({name: round(rate) for name, rate in rates.items()}))


if __name__ == "__main__":
    main()
