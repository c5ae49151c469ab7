"""Tasks that are run while their store is down; what they did is told by lines of a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery
from sqlalchemy import text
from tenacity import stop_after_attempt, wait_fixed

import unlost
from unlost.idempotency.sql import SqlStore

TRACES = Path(os.environ["TRACES"])

app = Celery("storeless")
runtime = unlost.install(
    app,
    topology=os.environ["TEST_TOPOLOGY"],
    retries=unlost.RetryPolicy(wait=wait_fixed(1), stop=stop_after_attempt(2)),
)


def trace(line: str) -> None:
    """Leave a trace."""
    with TRACES.open("a") as file:
        file.write(line + "\n")


@app.task(base=unlost.ReliableTask, name="s.closed", queue="t.work")
def closed(label: str) -> None:
    """Wait for the store."""
    trace(label)


@app.task(base=unlost.ReliableTask, name="s.opened", queue="t.work", on_store_down="open")
def opened(label: str) -> None:
    """Run on without the store."""
    trace(label)


@app.task(base=unlost.ReliableTask, name="s.fails", queue="t.work", on_store_down="open")
def fails(label: str) -> None:
    """Fail without the store."""
    trace(label)
    raise RuntimeError("no")


@app.task(base=unlost.ReliableTask, bind=True, name="s.works", queue="t.work", on_store_down="open")
def works(self: Any, label: str) -> None:
    """Need the store after all, if it is one that has transactions."""
    if isinstance(runtime.ledger, SqlStore):
        with self.unit_of_work() as work:
            work.connection.execute(text("SELECT 1"))
    trace(label)
