"""Load that goes on while faults happen: a client that publishes until it is stopped, and the account."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import IO, Self

from tests.support.workers import ROOT, SOON, Bench

#: Says ``+ label`` of what was confirmed and ``- label`` of what is not known to be; ends upon SIGTERM.
_CLIENT = """
import itertools, os, signal, sys, time
import {module} as m
from unlost.errors import BrokerError
over = []
signal.signal(signal.SIGTERM, lambda *_: over.append(1))
for number in itertools.count():
    if over:
        break
    label = f"load-{{number}}"
    try:
        m.works.delay(label, {seconds} if number % {every_long} else {long_seconds})
    except BrokerError:
        print("-", label, flush=True)
    else:
        print("+", label, flush=True)
    time.sleep({pause})
"""


@dataclass
class Load:
    """Publishes ``t.works`` at a steady rate while the block runs.

    Args:
        shop: The bench whose app publishes.
        rate: Messages a second, at most.
        seconds: How long a body takes.
        long_seconds: How long one body of ``every_long`` takes.
        every_long: One body of so many is long.
    """

    shop: Bench
    rate: float = 20.0
    seconds: float = 0.1
    long_seconds: float = 0.1
    every_long: int = 20
    confirmed: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    _client: subprocess.Popen[str] | None = None
    _reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        program = _CLIENT.format(
            module=self.shop.module,
            seconds=self.seconds,
            long_seconds=self.long_seconds,
            every_long=self.every_long,
            pause=1 / self.rate,
        )
        with (self.shop.folder / "client.log").open("wb") as log:
            self._client = subprocess.Popen(
                [sys.executable, "-c", program],
                env=self.shop.environment,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._reader = threading.Thread(target=self._read, args=(self._client.stdout,))
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let the client end its last publish."""
        if self._client is None or self._reader is None:
            return
        self._client.terminate()
        try:
            self._client.wait(SOON.total_seconds())
        finally:
            self._client.kill()
            self._client.wait()
            self._reader.join()

    def _read(self, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                sign, label = line.split()
                (self.confirmed if sign == "+" else self.unknown).add(label)

    def wait_until_settled(self, patience: timedelta) -> None:
        """Wait until each confirmed task has its effect."""
        self.shop.wait_for(
            lambda: self.confirmed <= set(self.shop.effects()), "each confirmed task had its effect", patience
        )

    def verdict(self) -> dict[str, int]:
        """Return how many were confirmed, how many of those are lost, and how many effects are too many."""
        effects: Counter[str] = self.shop.effects()
        return {
            "confirmed": len(self.confirmed),
            "unknown": len(self.unknown),
            "lost": len(self.confirmed - set(effects)),
            "twice": sum(count - 1 for count in effects.values()),
        }


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to every process of a worker, as a terminal and some process managers do."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
