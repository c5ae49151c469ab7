"""A ledger in a temporary file, a clock to turn, and processes that compete for its rows."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from sqlalchemy import text

from tests.support.processes import PATIENCE
from unlost.core.ids import Generation, MessageId
from unlost.core.settlement import Admission, Delivery, Limits, Row, Run
from unlost.idempotency.holder import make_holder
from unlost.idempotency.sql import SqlStore

MESSAGE = MessageId("shop.charge", "m")
FIRST = Generation(0, 1)
LEASE = timedelta(seconds=15)
LIMITS = Limits()

SPAWN = multiprocessing.get_context("spawn")


class BootClock:
    """Seconds since boot, as a test sets them."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.seconds


@contextmanager
def opened(path: Path) -> Iterator[SqlStore]:
    """Open a store with its tables and one of business rows, and close it."""
    store = SqlStore(f"sqlite:///{path}")
    store.create_schema()
    with store.engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS payments (amount INTEGER UNIQUE)"))
    try:
        yield store
    finally:
        store.engine.dispose()


def acquire(
    store: SqlStore,
    message: MessageId = MESSAGE,
    generation: Generation = FIRST,
    holder: str | None = None,
) -> Admission:
    """Acquire as a delivery of this process."""
    delivery = Delivery(message=message, generation=generation, holder=holder or make_holder())
    return store.acquire(delivery, lease=LEASE, limits=LIMITS)


def granted(store: SqlStore, message: MessageId = MESSAGE, **more: Any) -> Row:
    """Acquire, and return the lease that must have been granted."""
    admission = acquire(store, message, **more)
    assert isinstance(admission, Run), admission
    return admission.row


def read(store: SqlStore, message: MessageId = MESSAGE) -> Row:
    """Return a row that must be there."""
    row = store.read(message)
    assert row is not None
    return row


def pay(work: Any, amount: int = 5) -> None:
    """Write a business row."""
    work.session.execute(text("INSERT INTO payments VALUES (:amount)"), {"amount": amount})


def payments(store: SqlStore) -> list[int]:
    """Return the business rows."""
    with store.engine.connect() as connection:
        return [row[0] for row in connection.execute(text("SELECT amount FROM payments"))]


def race(path: Path, processes: int, messages: int) -> list[int]:
    """Let processes acquire the same messages at once; return how often each was granted."""
    start = SPAWN.Barrier(processes)
    pipes = [SPAWN.Pipe(duplex=False) for _ in range(processes)]
    workers = [SPAWN.Process(target=_acquire_all, args=(path, messages, start, there)) for _, there in pipes]
    for worker, (_, there) in zip(workers, pipes, strict=True):
        worker.start()
        # A worker that fails closes the last copy, which ends the wait for what it would have sent.
        there.close()
    grants = [here.recv() for here, _ in pipes]
    for worker in workers:
        worker.join()
    for here, _ in pipes:
        here.close()
    return [sum(of_message) for of_message in zip(*grants, strict=True)]


def _acquire_all(path: Path, messages: int, start: Barrier, grants: Any) -> None:
    store = SqlStore(f"sqlite:///{path}")
    start.wait(PATIENCE.total_seconds())
    store.create_schema()
    names = [MessageId("shop.charge", str(number)) for number in range(messages)]
    grants.send([isinstance(acquire(store, name), Run) for name in names])
    # Stay: what a dead process was granted may be taken over at once.
    start.wait(PATIENCE.total_seconds())


def die_in_unit_of_work(path: Path) -> int:
    """Let a process acquire the message, write a business row and be killed; return its exit code."""
    worker: SpawnProcess = SPAWN.Process(target=_die, args=(path,))
    worker.start()
    worker.join()
    return worker.exitcode or 0


def _die(path: Path) -> None:
    store = SqlStore(f"sqlite:///{path}")
    with store.unit_of_work(MESSAGE, granted(store), str) as work:
        pay(work)
        os.kill(os.getpid(), signal.SIGKILL)
