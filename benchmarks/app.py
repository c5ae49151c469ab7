"""The application that the benchmarks run: the same bodies on plain Celery and on unlost.

``BENCH_STORE`` chooses: empty for plain Celery with the broker guarantees that unlost has (quorum queue, late
acks, rejected when a process is lost, prefetch as given); else the URL of unlost's store. ``BENCH_DATABASE``
is where :func:`write_row` writes; on unlost that is the store.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task
from celery.signals import task_postrun
from kombu import Queue
from sqlalchemy import Column, Integer, MetaData, Table, insert

import unlost
from benchmarks.shape import QUEUE, topology_for
from unlost.database.database import Database

#: Bytes of a line of the files of times, as :mod:`benchmarks.idempotency` counts them.
LINE = 21

rows = Table("bench_rows", MetaData(), Column("id", Integer, primary_key=True), Column("number", Integer))


store = os.environ.get("BENCH_STORE", "")
app = Celery("bench", broker=os.environ["CELERY_BROKER_URL"])
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)
if store:
    unlost.install(app, topology=topology_for(store), store=store)
    Base: type[Task] = unlost.ReliableTask
else:
    app.conf.update(
        task_queues=[Queue(QUEUE, queue_arguments={"x-queue-type": "quorum"})],
        task_default_queue=QUEUE,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        broker_transport_options={"confirm_publish": True},
        worker_disable_rate_limits=True,
    )
    Base = Task
app.conf.worker_prefetch_multiplier = int(os.environ.get("BENCH_PREFETCH", "1"))
database = Database(os.environ["BENCH_DATABASE"]) if "BENCH_DATABASE" in os.environ and not store else None


@app.task(base=Base, name="bench.nothing")
def nothing(number: int) -> None:
    """Do nothing."""


@app.task(base=Base, bind=True, name="bench.write_row")
def write_row(self: Any, number: int) -> None:
    """Write one row: in a unit of work, or in a transaction of its own."""
    if database is not None:
        with database.transaction() as connection:
            connection.execute(insert(rows).values(number=number))
        return
    with self.unit_of_work() as work:
        work.connection.execute(insert(rows).values(number=number))


_files: dict[int, int] = {}


@task_postrun.connect
def note(**_: Any) -> None:
    """Note the time of every task, in a file for each process; all lines are of one length."""
    pid = os.getpid()
    if pid not in _files:
        path = Path(os.environ["BENCH_TIMES"]) / str(pid)
        _files[pid] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(_files[pid], f"{time.monotonic():0{LINE - 1}.6f}\n".encode())
