"""Outboxes in a database, messages for them, and relays whose broker is a list."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import select, update

from unlost.core.message import Outgoing
from unlost.database.database import Database
from unlost.errors import BrokerError
from unlost.outbox.relay import Options, Relay, Step
from unlost.outbox.schema import outbox
from unlost.outbox.state import Backoff
from unlost.outbox.store import OutboxStore
from unlost.outbox.wakeup import Poll, Wakeup
from unlost.outbox.writer import write

LEASE = timedelta(seconds=60)


def message(number: int, **headers: Any) -> Outgoing:
    """Make a rendered message."""
    return Outgoing(
        exchange="shop",
        routing_key="shop.work",
        body=b"[[], {}, {}]",
        headers={"task": "shop.pay", "id": f"m{number}", **headers},
        properties={"message_id": f"m{number}.0.1", "delivery_mode": 2},
    )


def commit(store: OutboxStore, *numbers: int, key: str | None = None) -> None:
    """Write messages in one transaction that commits."""
    with store.engine.begin() as connection:
        write(connection, [message(number) for number in numbers], key)


def ids(entries: Sequence[Any]) -> list[str]:
    """Return the task ids of claimed entries or of messages."""
    return [(getattr(each, "message", each)).headers["id"] for each in entries]


def columns(store: OutboxStore, *names: str) -> list[tuple[Any, ...]]:
    """Return columns of all rows, in the order of insertion."""
    query = select(*(outbox.c[name] for name in names)).order_by(outbox.c.id)
    with store.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(query)]


def end_leases(store: OutboxStore) -> None:
    """Make every lease and every wait end now, as if time had passed."""
    with store.engine.begin() as connection:
        connection.execute(update(outbox).values(available_ms=0))


@contextmanager
def opened_outbox(url: str) -> Iterator[OutboxStore]:
    """Open an outbox with its tables, and close its connections at the end."""
    store = OutboxStore(Database(url))
    store.create_schema()
    try:
        yield store
    finally:
        store.engine.dispose()


@dataclass
class Broker:
    """What a relay publishes to: a list, and errors for some task ids."""

    errors: dict[str, BrokerError] = field(default_factory=dict)
    published: list[Outgoing] = field(default_factory=list)
    calls: list[list[str]] = field(default_factory=list)

    def send(self, messages: Sequence[Outgoing]) -> list[BrokerError | None]:
        """Take what has no error."""
        self.calls.append(ids(messages))
        outcomes = [self.errors.get(each.headers["id"]) for each in messages]
        self.published += [m for m, error in zip(messages, outcomes, strict=True) if error is None]
        return outcomes


def relay(
    store: OutboxStore,
    broker: Broker,
    wakeup: Wakeup | None = None,
    on_step: Callable[[Step], None] = lambda _step: None,
    **options: Any,
) -> Relay:
    """Make a relay."""
    quick = Backoff(first=timedelta(milliseconds=1))
    return Relay(store, broker.send, wakeup or Poll(), Options(**{"backoff": quick, **options}), on_step)


@contextmanager
def running(made: Relay) -> Iterator[threading.Thread]:
    """Run a relay in a thread, and stop it at the end."""
    stop = threading.Event()
    thread = threading.Thread(target=made.run, args=(stop,))
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(30)
        if thread.is_alive():
            raise AssertionError("the relay did not stop")
