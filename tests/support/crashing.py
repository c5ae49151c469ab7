"""An app whose workers crash at chosen points, and what it takes to say what became of each order.

An order is a task with an effect and a link with another. In an SQL store the effects are rows that commit
with the done record; with Redis they are lines of a file, which nothing ties to the ledger.

``CRASH_RATE`` is one crash in so many passages of a point, chosen by the message's id: which messages crash
where is the same in each run, and none crashes twice at the same point.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import signal
import sys
import time
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery import Celery
from sqlalchemy import BigInteger, Column, MetaData, String, Table, insert, select

import unlost
from tests.support.crashes import BODY, OF_THE_PARENT
from unlost.broker.errors import ConfirmUnknown
from unlost.chaos.crew import TELL_STACKS
from unlost.core.ids import MessageId
from unlost.errors import BrokerError
from unlost.idempotency.sql import SqlStore
from unlost.tasks.crashpoints import Point

FOLDER = Path(os.environ["CRASH_FOLDER"])
RATE = int(os.environ.get("CRASH_RATE", "0"))
MARKS = FOLDER / "marks"
LINES = FOLDER / "effects"

effects = Table(
    "order_effects",
    MetaData(),
    Column("id", BigInteger().with_variant(BigInteger, "postgresql"), primary_key=True, autoincrement=True),
    Column("label", String(64)),
)

# Children inherit it; the descriptor is the log's, whatever Celery makes of sys.stderr.
faulthandler.register(TELL_STACKS, file=2, all_threads=True)

app = Celery("crashing")
runtime = unlost.install(app, topology=os.environ["TEST_TOPOLOGY"], retries=unlost.RetryPolicy())
if isinstance(runtime.ledger, SqlStore):
    with runtime.ledger.database.transaction() as _connection:
        effects.metadata.create_all(_connection)


def strike(point: str, message: MessageId) -> None:
    """Crash here if this message is to, and has not."""
    name = f"{point}-{message}"
    if not RATE or zlib.crc32(name.encode()) % (RATE * (8 if point in OF_THE_PARENT else 1)):
        return
    mark = MARKS / f"{point}-{zlib.crc32(str(message).encode()):08x}-{message.id}"
    with suppress(FileExistsError):
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        if point == Point.COMMITTING:
            _kill_soon()
            return
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


def _kill_soon() -> None:
    """Kill this process while its COMMIT is under way: before it is sent, inside, or when it is answered."""
    victim = os.getpid()
    if os.fork() == 0:
        time.sleep(random.uniform(0, 0.004))
        os.kill(victim, signal.SIGKILL)
        os._exit(0)


runtime.points.observer = strike


def take_effect(self: Any, label: str) -> str:
    """Have the effect: in a unit of work, or outside of everything."""
    message = MessageId(self.name, self.request.id)
    if isinstance(runtime.ledger, SqlStore):
        with self.unit_of_work() as work:
            work.connection.execute(insert(effects).values(label=label))
            strike(BODY, message)
            work.result = label
        return label
    line = json.dumps([label, str(message), self.idempotency_token]).encode() + b"\n"
    with LINES.open("ab", buffering=0) as file:
        file.write(line)
    strike(BODY, message)
    return label


@app.task(base=unlost.ReliableTask, bind=True, name="c.order", queue="t.work", key="number")
def order(self: Any, number: int) -> str:
    """Carry out an order, once however many messages bring it."""
    return take_effect(self, f"order-{number}")


@app.task(base=unlost.ReliableTask, bind=True, name="c.receipt", queue="t.work", key="label")
def receipt(self: Any, label: str) -> str:
    """Follow from an order."""
    return take_effect(self, f"receipt-of-{label}")


def promised(orders: int) -> set[str]:
    """Return the labels of all effects that orders promise."""
    labels = {f"order-{number}" for number in range(orders)}
    return labels | {f"receipt-of-{label}" for label in labels}


def there() -> Counter[str]:
    """Return how often each effect is there."""
    if isinstance(runtime.ledger, SqlStore):
        with runtime.ledger.database.transaction() as connection:
            return Counter(connection.scalars(select(effects.c.label)))
    lines = LINES.read_text().splitlines() if LINES.exists() else []
    return Counter(json.loads(line)[0] for line in lines)


def unexplained() -> list[str]:
    """Return the effects that are there more often than crashes and lost leases of their message explain."""
    lines = [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []
    recorded: Counter[str] = Counter()
    for label, message in {(label, message) for label, message, _ in lines}:
        task, _, rest = message.partition("[")
        row = runtime.ledger.read(MessageId(task, rest.removesuffix("]")))
        recorded[label] += (row.crashes + row.lost) if row else 0
    tokens = {label: {token for of, _, token in lines if of == label} for label, _, _ in lines}
    return [
        f"{label}: {count} times, {recorded[label]} crashes and losses, {len(tokens.get(label, ()))} tokens"
        for label, count in there().items()
        if count - 1 > recorded[label] or len(tokens.get(label, ())) > 1
    ]


def publish(orders: int) -> None:
    """Publish each order; every fifth twice under one id, every seventh again under another id."""
    for number in range(orders):
        link = receipt.s().set(task_id=f"receipt-{number}")
        ids = [f"order-{number}"] * (2 if number % 5 == 0 else 1)
        ids += [f"again-{number}"] * (number % 7 == 0)
        for task_id in ids:
            _publish_surely((number,), task_id, link)
        if number % 50 == 49:
            sys.stdout.write(f"{number + 1}\n")
            sys.stdout.flush()


def _publish_surely(args: tuple[int], task_id: str, link: Any) -> None:
    while True:
        try:
            order.apply_async(args, task_id=task_id, link=link)
        except ConfirmUnknown as exc:
            with suppress(BrokerError):
                exc.resend()
                return
        except BrokerError:
            time.sleep(0.2)
        else:
            return


if __name__ == "__main__":
    MARKS.mkdir(exist_ok=True)
    publish(int(sys.argv[1]))
