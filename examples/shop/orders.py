"""What the shop does, without a word of Celery: an order, its three effects, where they are written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from pydantic import BaseModel
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    insert,
    select,
)

STEPS = ("charge", "reserve", "receipt")

metadata = MetaData()

#: One row for each effect. No unique constraint: a second effect must show, not be swallowed.
effects = Table(
    "shop_effects",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("order_id", Integer, nullable=False),
    Column("step", String(16), nullable=False),
    Column("time_ns", BigInteger, nullable=False),
)


class Order(BaseModel):
    """An order.

    ``work`` is how long each step takes before its effect is written and ``linger`` how long after it;
    a ``declined`` card is never charged, a ``flaky`` payment provider fails the first time.
    """

    order_id: int
    amount: int = 100
    work: timedelta = timedelta(milliseconds=10)
    linger: timedelta = timedelta(0)
    declined: bool = False
    flaky: bool = False


class CardDeclined(Exception):
    """Trying again will not help."""


class PaymentTimeout(Exception):
    """Trying again may help."""


def create_tables(engine: Engine) -> None:
    """Create the effects table where it is missing."""
    with engine.begin() as connection:
        metadata.create_all(connection)


def carry_out(connection: Connection, order: Order, step: str) -> None:
    """Write the effect of a step into the caller's transaction."""
    row = {"order_id": order.order_id, "step": step, "time_ns": time.time_ns()}
    connection.execute(insert(effects).values(**row))


def ask_the_bank(order: Order, attempt: int) -> None:
    """Charge the card, which may be declined or time out."""
    if order.declined:
        raise CardDeclined(f"order {order.order_id}: the card was declined")
    if order.flaky and attempt == 1:
        raise PaymentTimeout(f"order {order.order_id}: the bank did not answer")


@contextmanager
def taking_time(order: Order) -> Iterator[None]:
    """Work before and after what is inside."""
    time.sleep(order.work.total_seconds())
    yield
    time.sleep(order.linger.total_seconds())


def read_effects(engine: Engine) -> list[tuple[int, str, int]]:
    """Return all effects as (order id, step, epoch nanoseconds)."""
    query = select(effects.c.order_id, effects.c.step, effects.c.time_ns).order_by(effects.c.id)
    with engine.connect() as connection:
        return [(row.order_id, row.step, row.time_ns) for row in connection.execute(query)]
