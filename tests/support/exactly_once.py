"""One run of the crashing app: orders are published while workers, broker and store die; then the verdict."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

import psutil

from tests.support.workers import ROOT, Bench
from unlost.broker.management import Management
from unlost.chaos.crew import TELL_STACKS
from unlost.chaos.drain import wait_until_drained
from unlost.errors import HarnessError
from unlost.testing.waiting import wait_until

MODULE = "tests.support.crashing"
#: A process writes its stacks in a signal handler: at once, or never.
SOON = timedelta(seconds=10)


@dataclass(frozen=True)
class Verdict:
    """What became of the orders.

    Attributes:
        lost: Effects that were promised and are not there.
        duplicates: Effects that are there more than once, and how often.
        unexplained: Those of them that no recorded crash or lost lease explains.
        crashes: How many processes were struck at which point.
        seconds: From the first publish until everything was settled.
    """

    lost: list[str]
    duplicates: dict[str, int]
    unexplained: list[str]
    crashes: Counter[str]
    seconds: float

    def __str__(self) -> str:
        crashes = ", ".join(f"{point} {count}" for point, count in sorted(self.crashes.items()))
        repeated = sum(self.duplicates.values()) - len(self.duplicates)
        return (
            f"lost {len(self.lost)}, duplicate effects {repeated}, unexplained {len(self.unexplained)}; "
            f"{self.crashes.total()} crashes ({crashes}) in {self.seconds:.0f} s"
        )


@dataclass
class Crashing:
    """A bench of the crashing app whose workers are replaced when they die."""

    bench: Bench
    workers: int = 2
    _over: threading.Event = field(default_factory=threading.Event)

    @property
    def marks(self) -> Path:
        """Return the folder with a file for each crash."""
        return self.bench.folder / "marks"

    def run(self, orders: int, patience: timedelta, trouble: Callable[[int], None] | None = None) -> Verdict:
        """Publish, wait until every promised effect is there and nothing is under way, and judge.

        Args:
            orders: How many.
            patience: For all of it.
            trouble: Called with the number of orders published, each time that fifty more are.
        """
        self.marks.mkdir(exist_ok=True)
        began = time.monotonic()
        with self._supervised():
            self._publish(orders, trouble)
            self._drain(patience)
        seconds = time.monotonic() - began
        code = (
            f"import json; there, promised = m.there(), m.promised({orders}); "
            "print(json.dumps([sorted(promised - there.keys()), "
            "{label: count for label, count in there.items() if count > 1}, "
            "m.unexplained(), sorted(there.keys() - promised)]))"
        )
        lost, duplicates, unexplained, unexpected = json.loads(self.bench.call(code))
        if unexpected:
            raise AssertionError(f"effects from nowhere: {unexpected[:5]}")
        crashes = Counter(mark.name.partition("-")[0] for mark in self.marks.iterdir())
        return Verdict(lost, duplicates, unexplained, crashes, seconds)

    @contextmanager
    def _supervised(self) -> Iterator[None]:
        running = [self.bench.start(module=MODULE) for _ in range(self.workers)]

        def replace_dead() -> None:
            while not self._over.wait(0.2):
                for number, worker in enumerate(running):
                    if worker.poll() is not None:
                        running[number] = self.bench.start(wait=False, module=MODULE)

        supervisor = threading.Thread(target=replace_dead)
        supervisor.start()
        try:
            yield
        finally:
            self._over.set()
            supervisor.join()
            self.bench.stop()

    def _publish(self, orders: int, trouble: Callable[[int], None] | None) -> None:
        with subprocess.Popen(
            [sys.executable, "-m", MODULE, str(orders)],
            env={**self.bench.environment, "CRASH_RATE": "0"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as client:
            for line in client.stdout or ():
                if trouble is not None:
                    trouble(int(line))
        if client.returncode:
            raise AssertionError(f"the client ended with status {client.returncode}")

    def _drain(self, patience: timedelta) -> None:
        """Wait until every queue but that of dead letters is empty, unacked and delayed messages too."""
        vhost = self.bench.vhost
        with Management(vhost.management_url, vhost.name) as management:
            if not wait_until_drained(management, ["t.work.dlq"], patience):
                raise AssertionError(f"not drained in {patience}: {self.stacks()}")

    def stacks(self) -> str:
        """Have every process of the workers that live write to its log where it stands; return that."""
        told = []
        for number, worker in enumerate(self.bench.workers):
            if worker.poll() is not None:
                continue
            log, before = partial(self.bench.log, number), len(self.bench.log(number))
            parent = psutil.Process(worker.pid)
            processes = [parent, *parent.children()]
            for process in processes:
                process.send_signal(TELL_STACKS)
            # Nobody waits for one that cannot tell.
            with suppress(HarnessError):
                wait_until(_have_told(log, before, len(processes)), SOON, "every process has told")
            told.append(
                f"worker-{number}, {[process.pid for process in processes]}:\n{log()[before - 1500 :]}"
            )
        return "\n".join(told)


def _have_told(log: Callable[[], str], before: int, processes: int) -> Callable[[], bool]:
    return lambda: log()[before:].count("Current thread") >= processes
