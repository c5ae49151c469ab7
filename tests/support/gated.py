"""An app whose tasks depend on a bank that is down while a file is there; run by real workers.

``TEST_FOLDER`` holds the traces and the file ``down``; ``TEST_WITHOUT`` names what is switched off. With
``TEST_READS=late`` the worker is slow to read the broker's answers, and finds more there than those.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

from amqp import Channel
from celery import Celery
from tenacity import stop_after_attempt, wait_fixed

import unlost
from tests.support.traces import leave

FOLDER = Path(os.environ["TEST_FOLDER"])
WITHOUT = os.environ.get("TEST_WITHOUT", "")

BANK = unlost.Breaker(name="bank", at_least=4, pause=timedelta(seconds=1), on=(ConnectionError,))
ONE_AT_A_TIME = unlost.Limit(name="printer", concurrent=1)
TEN_A_SECOND = unlost.Limit(name="sms", rate=10)
THRICE = unlost.RetryPolicy(wait=wait_fixed(1), stop=stop_after_attempt(3))

if os.environ.get("TEST_READS") == "late":
    wait_for_answer = Channel.wait

    def wait_late(*args: Any, **kwargs: Any) -> Any:
        """Have the broker send on before its answer is read."""
        time.sleep(0.2)
        return wait_for_answer(*args, **kwargs)

    patch.object(Channel, "wait", wait_late).start()

app = Celery("gated")
runtime = unlost.install(app, topology=os.environ["TEST_TOPOLOGY"])


def task(name: str, queue: str, **options: Any) -> Any:
    """Return a decorator for a bound reliable task."""
    return app.task(base=unlost.ReliableTask, bind=True, name=name, queue=queue, **options)


@task("g.pay", "g.bank", retry=THRICE, breaker=None if WITHOUT == "breaker" else BANK)
def pay(self: Any, number: int) -> None:
    """Fail while the bank is down."""
    time.sleep(0.02)
    down = (FOLDER / "down").exists()
    leave(FOLDER, what="pay", number=number, attempt=self.attempt, failed=down)
    if down:
        raise ConnectionError("the bank does not answer")


@task("g.prints", "g.printer", limit=None if WITHOUT == "limit" else ONE_AT_A_TIME)
def prints(self: Any, number: int) -> None:
    """Take a while."""
    leave(FOLDER, what="begin", number=number)
    time.sleep(0.1)
    leave(FOLDER, what="end", number=number)


@task("g.texts", "g.sms", limit=None if WITHOUT == "limit" else TEN_A_SECOND)
def texts(self: Any, number: int) -> None:
    """Leave a trace."""
    leave(FOLDER, what="text", number=number)
