"""An app whose orders each have a receipt sent when they are written, and its load for a chaos run.

``RECEIPTS`` says how: through the ``outbox`` in the order's transaction, or, as many applications do, with a
plain ``delay()`` ``after`` the commit or ``before`` it. A worker's parent relays the outbox.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from celery import Celery
from celery.signals import worker_ready
from kombu import Connection
from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table, insert, select

import unlost
from unlost.broker.publisher import Publisher
from unlost.chaos.workload import Workload
from unlost.idempotency.sql import SqlStore
from unlost.outbox.relay import Options, Relay, sending
from unlost.outbox.store import OutboxStore
from unlost.outbox.wakeup import wakeup_for
from unlost.topology.model import Topology, WorkQueue

RECEIPTS = os.environ.get("RECEIPTS", "outbox")
QUEUES = ("outboxed.orders", "outboxed.receipts")

#: A relay that is killed holds its rows for no longer than this.
LEASE = timedelta(seconds=3)

effects = Table(
    "outboxed_effects",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("label", String(64)),
    Column("time_ns", BigInteger),
)

app = Celery("outboxed")
runtime = unlost.install(
    app, topology=Topology(name="outboxed", queues={each: WorkQueue() for each in QUEUES})
)
effects.metadata.create_all(runtime.engine)


def _write(connection: Any, label: str) -> None:
    connection.execute(insert(effects).values(label=label, time_ns=time.time_ns()))


@app.task(base=unlost.ReliableTask, bind=True, name="outboxed.order", queue=QUEUES[0])
def order(self: Any, number: int) -> None:
    """Write an order, and have its receipt sent."""
    with self.unit_of_work() as work:
        _write(work.connection, f"{number}/order")
        if RECEIPTS == "outbox":
            work.publish(receipt, number=number)
        elif RECEIPTS == "before":
            receipt.delay(number=number)
    if RECEIPTS == "after":
        receipt.delay(number=number)


@app.task(base=unlost.ReliableTask, bind=True, name="outboxed.receipt", queue=QUEUES[1])
def receipt(self: Any, number: int) -> None:
    """Write a receipt."""
    with self.unit_of_work() as work:
        _write(work.connection, f"{number}/receipt")


@worker_ready.connect
def relay(**_: Any) -> None:
    """Relay in a thread of the worker, as long as that lives."""
    if not isinstance(runtime.ledger, SqlStore):
        raise TypeError("the outbox needs a SQL store")
    store = OutboxStore(runtime.ledger.database)
    publisher = Publisher(Connection(os.environ["CELERY_BROKER_URL"]))
    options = Options(lease=LEASE, poll=timedelta(milliseconds=200))
    made = Relay(store, sending(publisher, 20), wakeup_for(store.engine), options)
    threading.Thread(target=made.run, args=(threading.Event(),), daemon=True).start()


@dataclass(frozen=True, kw_only=True)
class OrdersAndReceipts(Workload):
    """Orders that promise themselves and a receipt."""

    def publish(self, number: int) -> None:
        """Place order ``number``."""
        order.delay(number=number)

    def promises(self, number: int) -> Sequence[str]:
        """Return the order and its receipt."""
        return [f"{number}/order", f"{number}/receipt"]

    def value_of(self, task: str, _args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """Return what a task writes."""
        of, _, kind = task.partition(".")
        return f"{kwargs['number']}/{kind}" if of == "outboxed" else None

    def effects(self) -> Iterator[tuple[str, int]]:
        """Return all that was written."""
        with runtime.engine.connect() as connection:
            yield from (
                (label, at) for label, at in connection.execute(select(effects.c.label, effects.c.time_ns))
            )
