"""The same shop on Dramatiq, with its defaults, or with ``SHOP_HARDENED`` with publisher confirms."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.middleware import CurrentMessage
from sqlalchemy import create_engine

from benchmarks.dramatiq_shop import HISTORY, NAME
from shop.orders import (
    STEPS,
    Order,
    ask_the_bank,
    carry_out,
    create_tables,
    taking_time,
)
from unlost.chaos.history import Recorder, fresh_file
from unlost.chaos.subject import BROKER_VARIABLE

_PR_SET_PDEATHSIG = 1

#: What Dramatiq calls the queue of what it has given up.
LETTERS = "default.XQ"


class Recording(dramatiq.Middleware):
    """Records start and end of each body, as the kit does for Celery."""

    def __init__(self, history: Path, name: str) -> None:
        self._history = history
        self._name = name
        self._recorder: Recorder | None = None

    def after_process_boot(self, _broker: Any) -> None:
        """Die with the parent, as Celery's children do, and be ready in the words that the crew waits for."""
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        sys.stderr.write(f"{self._name} ready.\n")

    def before_process_message(self, _broker: Any, message: Any) -> None:
        """Record the start."""
        self._note("start", message)

    def after_process_message(self, _broker: Any, message: Any, **_: Any) -> None:
        """Record the end."""
        self._note("end", message)

    def _note(self, f: str, message: Any) -> None:
        if self._recorder is None:
            self._recorder = Recorder(fresh_file(self._history, self._name))
        value = f"{message.kwargs['order_id']}/{message.actor_name}"
        self._recorder.record(self._name, "ok", f, value, pid=os.getpid())


broker = RabbitmqBroker(url=os.environ[BROKER_VARIABLE], confirm_delivery="SHOP_HARDENED" in os.environ)
broker.add_middleware(CurrentMessage())
if HISTORY in os.environ:
    broker.add_middleware(Recording(Path(os.environ[HISTORY]), os.environ[NAME]))
dramatiq.set_broker(broker)
engine = create_engine(os.environ["UNLOST_STORE"], connect_args={"timeout": 30})
create_tables(engine)


def _do(step: str, fields: Mapping[str, Any]) -> None:
    order = Order.model_validate(fields)
    with taking_time(order):
        if step == "charge":
            message = CurrentMessage.get_current_message()
            ask_the_bank(order, (message.options.get("retries", 0) if message else 0) + 1)
        with engine.begin() as connection:
            carry_out(connection, order, step)


# The plain shop's retry is after a second, too; Dramatiq's own first one is after fifteen.
@dramatiq.actor(actor_name=STEPS[0], min_backoff=1000, max_backoff=2000)
def charge(**fields: Any) -> None:
    """Charge the card of an order."""
    _do(STEPS[0], fields)


@dramatiq.actor(actor_name=STEPS[1], min_backoff=1000, max_backoff=2000)
def reserve(**fields: Any) -> None:
    """Take the goods of an order off the shelf."""
    _do(STEPS[1], fields)


@dramatiq.actor(actor_name=STEPS[2], min_backoff=1000, max_backoff=2000)
def receipt(**fields: Any) -> None:
    """Put the receipt of an order into the outgoing mail."""
    _do(STEPS[2], fields)


def place(order: Order) -> None:
    """Send an order."""
    fields = order.model_dump(mode="json")
    steps = [
        actor.message_with_options(kwargs=fields, pipe_ignore=True) for actor in (charge, reserve, receipt)
    ]
    dramatiq.pipeline(steps).run()
