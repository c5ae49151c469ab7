"""Starts Celery workers by forking a process that has imported everything that they need.

A worker's start is mostly imports: some two seconds of one core. Forked, each worker is a process of its own
all the same, with its own environment, which it reads as if it had just been started.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]

_IMPORTS = (
    "celery.__main__",
    "celery.bin.celery",
    "celery.bin.worker",
    "celery.apps.worker",
    "celery.worker.consumer",
    "celery.concurrency.prefork",
    "kombu.transport.pyamqp",
    "sqlalchemy.dialects.sqlite",
    "tests.support.lossmodes.app",
    "unlost.tasks.amqp",
    "unlost.tasks.consumer",
    "unlost.tasks.install",
)


@dataclass
class Child:
    """A worker that a nursery has started; it behaves like a :class:`subprocess.Popen`."""

    nursery: Nursery
    pid: int
    returncode: int | None = None

    def __post_init__(self) -> None:
        # It stays a zombie until its status is asked for, so this is no other process of that number.
        self._fd = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        """Return its exit status, negative for a signal; ``None`` while it runs."""
        return self._status(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit status.

        Raises:
            subprocess.TimeoutExpired: It runs on.
        """
        status = self._status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0)
        return status

    def _status(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._fd], [], [], timeout)[0]:
            self.returncode = self.nursery.ask({"bury": self.pid})
            os.close(self._fd)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._fd, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


class Nursery:
    """A process that forks workers on demand; they end with it."""

    def __init__(self) -> None:
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env=environ,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Its end of input is its end.
        self._process.communicate()

    def start(self, arguments: Sequence[str], environ: Mapping[str, str], log: Path) -> Child:
        """Start ``celery`` with these arguments.

        Args:
            arguments: Of the command line.
            environ: Its whole environment.
            log: Where its output goes.
        """
        request = {"arguments": [*arguments], "environ": dict(environ), "log": str(log)}
        return Child(self, self.ask(request))

    def ask(self, request: Mapping[str, Any]) -> int:
        """Send a request to the process and return its answer."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the nursery has no pipes")
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            return int(self._process.stdout.readline())


def main() -> None:
    """Serve requests until the input ends, then kill what is left."""
    for name in _IMPORTS:
        importlib.import_module(name)
    alive: set[int] = set()
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "bury" in request:
            pid, status = os.waitpid(request["bury"], 0)
            alive.discard(pid)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                _become(**request)
            alive.add(answer)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
    for pid in alive:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _become(arguments: list[str], environ: dict[str, str], log: str) -> None:
    """Be ``celery`` in a process that was just forked; never returns."""
    status = 1
    try:
        nothing, output = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(nothing, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.clear()
        os.environ.update(environ)
        sys.argv = ["celery", *arguments]
        importlib.import_module("celery.__main__").main()
        status = 0
    except SystemExit as exc:
        status = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
