"""Applications that write orders and messages, and relays, as processes that are killed at chosen points."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from itertools import count

from kombu import Connection
from sqlalchemy import Column, Integer, MetaData, Table, insert, select

from tests.support.ledgers import SPAWN
from tests.support.outboxes import message
from unlost.broker.publisher import Publisher
from unlost.database.database import Database
from unlost.outbox.relay import Options, Relay, Step, sending
from unlost.outbox.store import OutboxStore
from unlost.outbox.wakeup import wakeup_for
from unlost.outbox.writer import write

KEYS = 5

metadata = MetaData()
orders = Table("orders", metadata, Column("number", Integer, primary_key=True, autoincrement=False))


def place_order(database: Database, number: int, last: Callable[[], None] = lambda: None) -> None:
    """Write an order and its message in one transaction; ``last`` is called before the commit."""
    with database.transaction() as connection:
        connection.execute(insert(orders).values(number=number))
        order = message(number).to("", "work")
        write(connection, [order], f"k{number % KEYS}")
        last()


def placed(database: Database) -> set[int]:
    """Return the orders that are in the database."""
    with database.transaction() as connection:
        return set(connection.scalars(select(orders.c.number)))


def die() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def run_to_death(target: Callable[..., None], *arguments: object) -> None:
    """Run a function in a process and wait until it has been killed."""
    process = SPAWN.Process(target=target, args=arguments)
    process.start()
    process.join(60)
    if process.exitcode != -signal.SIGKILL:
        process.kill()
        raise AssertionError(f"the process was to be killed, but ended with {process.exitcode}")


def application(url: str, orders_to_place: list[int], when: str) -> None:
    """Place orders, every third of them rolled back, and be killed before or after the last commit."""
    database = Database(url)
    *others, last = orders_to_place
    for number in others:
        if number % 3:
            place_order(database, number)
        else:
            _roll_back(database, number)
    place_order(database, last, die if when == "before" else lambda: None)
    die()


def django_application(url: str, orders_to_place: list[int], when: str) -> None:
    """Do the same in Django's transactions: rows and messages by its own connection."""
    from django.db import connection, transaction

    from tests.support import django_project

    class _Refused(Exception):
        """Ends the transaction."""

    def place(number: int, last: Callable[[], None] = lambda: None) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders (number) VALUES (%s)", [number])
            order = message(number).to("", "work")
            write(DjangoTransaction("default"), [order], f"k{number % KEYS}")
            last()

    def refuse() -> None:
        raise _Refused

    django_project.set_up({"default": url})
    from unlost.django.transaction import DjangoTransaction

    *others, final = orders_to_place
    for number in others:
        with suppress(_Refused):
            place(number, refuse if number % 3 == 0 else lambda: None)
    place(final, die if when == "before" else lambda: None)
    die()


def _roll_back(database: Database, number: int) -> None:
    class _Refused(Exception):
        """Ends the transaction."""

    def refuse() -> None:
        raise _Refused

    with suppress(_Refused):
        place_order(database, number, refuse)


def relay_until(url: str, broker: str, step: Step, times: int) -> None:
    """Relay, and be killed the ``times``-th time that a step is reached."""
    database = Database(url)
    seen = count(1)

    def on_step(now: Step) -> None:
        if now is step and next(seen) == times:
            die()

    options = Options(lease=timedelta(seconds=2), batch=20)
    store = OutboxStore(database)
    send = sending(Publisher(Connection(broker)))
    Relay(store, send, wakeup_for(database.engine), options, on_step).run(threading.Event())
