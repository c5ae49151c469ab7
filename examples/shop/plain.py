"""The same shop on plain Celery 5.7, to see what is lost and repeated without unlost.

Its defaults, or with ``SHOP_HARDENED`` set what is usually done about them.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, chain
from sqlalchemy import create_engine

from shop.orders import Order, PaymentTimeout, ask_the_bank, carry_out, create_tables, taking_time

app = Celery("shop-plain")
if os.environ.get("SHOP_HARDENED"):
    # What guides recommend to those who must lose nothing.
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        task_default_queue_type="quorum",
        worker_detect_quorum_queues=True,
        broker_transport_options={"confirm_publish": True},
    )
engine = create_engine(os.environ.get("UNLOST_STORE", "sqlite:///plain.sqlite"), connect_args={"timeout": 30})
create_tables(engine)


@app.task(name="shop.charge_card", bind=True, autoretry_for=(PaymentTimeout,), default_retry_delay=1)
def charge_card(self: Any, **fields: Any) -> None:
    """Charge the card of an order."""
    order = Order.model_validate(fields)
    with taking_time(order):
        ask_the_bank(order, self.request.retries + 1)
        _write(order, "charge")


@app.task(name="shop.reserve_stock")
def reserve_stock(**fields: Any) -> None:
    """Take the goods of an order off the shelf."""
    order = Order.model_validate(fields)
    with taking_time(order):
        _write(order, "reserve")


@app.task(name="shop.send_receipt")
def send_receipt(**fields: Any) -> None:
    """Put the receipt of an order into the outgoing mail."""
    order = Order.model_validate(fields)
    with taking_time(order):
        _write(order, "receipt")


def _write(order: Order, step: str) -> None:
    with engine.begin() as connection:
        carry_out(connection, order, step)


def place(order: Order) -> None:
    """Publish an order."""
    fields = order.model_dump(mode="json")
    chain(*(task.si(**fields) for task in (charge_card, reserve_stock, send_receipt)))()
