"""Processes that race for the same messages; each is killed or stopped once, at a step of its own.

A contender acquires, works, writes its effect and completes, and notes every step in its file before it
takes it. At the step that is its doom it strikes itself: SIGKILL, or SIGSTOP. The stopped ones stay so until
all others have got every message done, however long past their lease: a message that only they can finish
would hang the race. Then they go on where they were, each with a lease that is no longer its.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from datetime import timedelta
from itertools import product
from pathlib import Path

from sqlalchemy import event, text

from unlost.core.ids import Generation, MessageId
from unlost.core.ports import Ledger
from unlost.core.settlement import AlreadyDone, Delivery, Limits, Run
from unlost.errors import LeaseLost, StoreUnavailable
from unlost.idempotency.holder import make_holder
from unlost.idempotency.open import open_store
from unlost.idempotency.sql import SqlStore

PROCESSES = 16
SHARED = 24
MESSAGES = SHARED + PROCESSES
#: Short, so that many takeovers fit into a test.
LEASE = timedelta(seconds=1)
LIMITS = Limits(max_crashes=10**6, max_lost=10**6)

#: Where a contender may be struck, and where it may be stopped: a process that is stopped inside a
#: transaction of SQLite stops every other writer, for it has no server to end that.
STEPS = {
    "sql": ("acquire", "acquired", "working", "written", "committing", "completed"),
    "sqlite": ("acquire", "acquired"),
    "other": ("acquire", "acquired", "working", "completed"),
}

Doom = tuple[str, int] | None


def dooms(kind: str) -> list[Doom]:
    """Return the fate of each contender: every step with every signal, and some that are spared."""
    kills = STEPS["other" if kind == "redis" else "sql"]
    stops = STEPS.get(kind) or STEPS["other" if kind == "redis" else "sql"]
    struck = [*product(kills, [signal.SIGKILL]), *product(stops, [signal.SIGSTOP])]
    return [*struck, *[None] * (PROCESSES - len(struck))]


class Contender:
    """One process of the race.

    Args:
        url: The store.
        folder: Where it keeps its notes.
        number: Which it is.
        fates: Of all: the step at which each strikes itself, and with which signal.
    """

    def __init__(self, url: str, folder: Path, number: int, fates: list[Doom]) -> None:
        self._store = open_store(url, lease=LEASE)
        self._notes = (folder / f"{number}.jsonl").open("a")
        self._chance = random.Random(number)
        self._doom = fates[number]
        self._to_strike = sum(fate is not None for fate in fates)
        self._folder = folder
        self._number = number
        self._message = MessageId("race", "")
        if isinstance(self._store, SqlStore):
            event.listen(self._store.engine, "commit", self._before_commit)
        self._in_work = False

    def _before_commit(self, _connection: object) -> None:
        if self._in_work:
            self._reach("committing")

    def contend(self) -> None:
        """Go on until every message is done: first its own, then the shared, then what others left."""
        undone = [*range(MESSAGES)]
        while undone:
            mine = [number for number in undone if number == SHARED + self._number]
            shared = [number for number in undone if number < SHARED]
            if not (mine or shared) and not self._all_are_struck():
                time.sleep(0.05)
                continue
            number = self._chance.choice(mine or shared or undone)
            self._message = MessageId("race", str(number))
            try:
                if self._is_done():
                    undone.remove(number)
            except (LeaseLost, StoreUnavailable) as exc:
                self._note("failed", str(exc))
            finally:
                self._in_work = False

    def _all_are_struck(self) -> bool:
        return len(list(self._folder.glob("*.struck"))) == self._to_strike

    def _is_done(self) -> bool:
        self._reach("acquire")
        delivery = Delivery(message=self._message, generation=Generation(0, 1), holder=make_holder())
        admission = self._store.acquire(delivery, lease=LEASE, limits=LIMITS)
        if isinstance(admission, AlreadyDone):
            return True
        if not isinstance(admission, Run):
            time.sleep(0.05)
            return False
        self._reach("acquired")
        if isinstance(self._store, SqlStore):
            self._work_in_transaction(self._store, admission)
        else:
            self._reach("working")
            self._store.complete(self._message, admission.row, None)
        self._reach("completed")
        return True

    def _work_in_transaction(self, store: SqlStore, admission: Run) -> None:
        with store.unit_of_work(self._message, admission.row, json.dumps) as work:
            self._in_work = True
            self._reach("working")
            work.connection.execute(text("INSERT INTO effects VALUES (:id)"), {"id": int(self._message.id)})
            self._reach("written")

    def _reach(self, step: str) -> None:
        self._note(step)
        if self._doom is not None and self._doom[0] == step:
            number, self._doom = self._doom[1], None
            self._note("struck", signal.Signals(number).name)
            (self._folder / f"{self._number}.struck").touch()
            os.kill(os.getpid(), number)

    def _note(self, step: str, more: str = "") -> None:
        self._notes.write(json.dumps([step, self._message.id, more]) + "\n")
        self._notes.flush()


def referee(url: str, folder: Path, kind: str) -> None:
    """Fork the contenders and wait for their end; wake the stopped when nobody else is left."""
    running: set[int] = set()
    fates = dooms(kind)
    for number in range(len(fates)):
        pid = os.fork()
        if pid == 0:
            Contender(url, folder, number, fates).contend()
            os._exit(0)
        running.add(pid)
    stopped: set[int] = set()
    while running:
        if running == stopped:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            stopped.clear()
        pid, status = os.waitpid(-1, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            stopped.add(pid)
        else:
            running.discard(pid)


def read_notes(folder: Path) -> list[list[str]]:
    """Return all that the contenders noted, as [step, message, more]; a torn last line is dropped."""
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.endswith("]")]


def prepare(url: str) -> Ledger:
    """Open the store, with a table for effects if it is a database."""
    store = open_store(url)
    store.create_schema()
    if isinstance(store, SqlStore):
        with store.database.transaction() as connection:
            connection.execute(text("CREATE TABLE effects (message INTEGER)"))
    return store


def effects(store: SqlStore) -> list[int]:
    """Return the messages whose effects are in the database, once for each."""
    with store.database.transaction() as connection:
        return sorted(connection.scalars(text("SELECT message FROM effects")))


if __name__ == "__main__":
    referee(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
