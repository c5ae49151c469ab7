"""The shop on unlost.

Start a worker with ``celery -A shop.app worker``; the broker comes from ``CELERY_BROKER_URL`` and the
store, in which the effects are written too, from ``UNLOST_STORE``.
"""

from __future__ import annotations

from pathlib import Path

import structlog
from celery import Celery, chain
from tenacity import stop_after_attempt, wait_fixed

import unlost
from shop.orders import (
    CardDeclined,
    Order,
    PaymentTimeout,
    ask_the_bank,
    carry_out,
    create_tables,
    taking_time,
)

log = structlog.get_logger()

TOPOLOGY = Path(__file__).parents[1] / "topology"

app = Celery("shop")
runtime = unlost.install(
    app, topology=TOPOLOGY if TOPOLOGY.is_dir() else Path(__file__).parents[2] / "topology"
)
engine = runtime.engine
create_tables(engine)


class ChargeCard(unlost.ReliableTask):
    """Charges the card of an order, once."""

    name = "shop.charge_card"
    queue = "shop.payments"
    payload = Order
    retry = unlost.RetryPolicy(
        wait=wait_fixed(1), stop=stop_after_attempt(5), on=(PaymentTimeout,), never=(CardDeclined,)
    )

    def run(self, order: Order) -> None:
        """Ask the bank, then write the payment and the done record in one transaction."""
        with taking_time(order):
            ask_the_bank(order, self.attempt)
            with self.unit_of_work() as work:
                carry_out(work.connection, order, "charge")
        log.info("charged", order=order.order_id, amount=order.amount)


class ReserveStock(unlost.ReliableTask):
    """Takes the goods of an order off the shelf, once."""

    name = "shop.reserve_stock"
    queue = "shop.stock"
    payload = Order

    def run(self, order: Order) -> None:
        """Write the reservation and the done record in one transaction."""
        with taking_time(order), self.unit_of_work() as work:
            carry_out(work.connection, order, "reserve")


class SendReceipt(unlost.ReliableTask):
    """Puts the receipt of an order into the outgoing mail, once."""

    name = "shop.send_receipt"
    queue = "shop.receipts"
    payload = Order

    def run(self, order: Order) -> None:
        """Write the mail and the done record in one transaction."""
        with taking_time(order), self.unit_of_work() as work:
            carry_out(work.connection, order, "receipt")


charge_card = app.register_task(ChargeCard())
reserve_stock = app.register_task(ReserveStock())
send_receipt = app.register_task(SendReceipt())


def place(order: Order) -> None:
    """Publish an order; when this returns, it will be carried out or shown to an operator."""
    fields = order.model_dump(mode="json")
    chain(*(task.si(**fields) for task in (charge_card, reserve_stock, send_receipt)))()
