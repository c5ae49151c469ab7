"""The worker processes of a run: started, killed, and started again by a supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import IO, Any

import psutil

from unlost.chaos import clock, waker
from unlost.errors import HarnessError
from unlost.testing.waiting import wait_until

#: With this status a worker says that its configuration is wrong.
EXIT_CONFIGURATION = 2

#: Upon this signal a worker or a child writes where each of its threads stands to its log.
TELL_STACKS = signal.SIGUSR2

CHECK_EVERY = timedelta(milliseconds=200)


@dataclass(frozen=True, kw_only=True)
class Command:
    """How to start the processes of a run: secrets travel in the environment, never as arguments.

    Attributes:
        app: Import path of the Celery app.
        workload: Import path of the workload's class.
        options: Its fields, as JSON.
        history: Folder of the history.
        environment: Of the process.
    """

    app: str
    workload: str
    options: str
    history: Path
    environment: Mapping[str, str] = field(repr=False)

    def start(
        self, module: str, *arguments: str, bare: bool = False, **popen: Any
    ) -> subprocess.Popen[bytes]:
        """Start a Python module of the chaos kit in a process group of its own.

        Args:
            module: Its name.
            *arguments: What it takes beside the fields of this command.
            bare: It takes nothing but the app.
            **popen: For ``Popen``.
        """
        ours = ["--workload", self.workload, "--options", self.options, "--history", str(self.history)]
        return subprocess.Popen(
            [sys.executable, "-m", module, "--app", self.app, *([] if bare else ours), *arguments],
            env=dict(self.environment),
            start_new_session=True,
            **popen,
        )


class Crew:
    """Workers that are replaced when they die, as under any process manager.

    Args:
        command: How to start one.
        size: How many.
        concurrency: Pool processes of each.
        logs: Folder for their output, one file each.
        faketime: The library that lets their wall clocks be set; ``None`` leaves them alone.
    """

    def __init__(
        self,
        command: Command,
        *,
        size: int,
        concurrency: int,
        logs: Path,
        faketime: Path | None = None,
    ) -> None:
        self._faketime = faketime
        self._command = command
        self._concurrency = concurrency
        self._logs = logs
        self._names = [f"worker-{number}" for number in range(1, size + 1)]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="unlost-crew", daemon=True)

    def __enter__(self) -> Crew:
        for name in self._names:
            self._start(name)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        for name in self._names:
            self.kill_parent(name)

    @property
    def names(self) -> Sequence[str]:
        """Return the workers' names."""
        return self._names

    def children(self, name: str) -> list[int]:
        """Return the pool processes of a worker, as they are now."""
        with suppress(psutil.Error), self._lock:
            return [child.pid for child in psutil.Process(self._processes[name].pid).children()]
        return []

    def kill_parent(self, name: str) -> list[int]:
        """SIGKILL a worker's parent; its children die with it. Returns the pids of those that lived."""
        pids = self.family(name)
        with self._lock:
            process = self._processes[name]
            process.kill()
            process.wait()
            _close(process)
        return pids

    def family(self, name: str) -> list[int]:
        """Return the pids of a worker and its children; none while it is dead."""
        with self._lock:
            process = self._processes[name]
            if process.poll() is not None:
                return []
        return [process.pid, *self.children(name)]

    def kill_group(self, name: str) -> list[int]:
        """SIGKILL a worker's parent and children at once. Returns the pids of those that lived."""
        pids = self.family(name)
        with self._lock:
            process = self._processes[name]
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _close(process)
        return pids

    @contextmanager
    def stopped(self, name: str) -> Iterator[list[int]]:
        """SIGSTOP a worker with its children for as long as the block; yields their pids.

        They go on also when this process dies meanwhile, and then end as all workers of a dead run do.
        """
        pids = self.family(name)
        with subprocess.Popen(
            [sys.executable, "-I", "-S", waker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={},
            start_new_session=True,
        ) as helper:
            # Its input ends with the block, and so does the stop.
            _order(helper, f"stop {' '.join(map(str, pids))}")
            yield pids

    def set_ahead(self, name: str, ahead: timedelta) -> None:
        """Set the wall clock of a worker and its children ahead, or behind; zero sets it right.

        Raises:
            HarnessError: The crew was started without libfaketime.
        """
        if self._faketime is None:
            raise HarnessError("clocks can only be set where libfaketime is installed")
        clock.set_ahead(self._clock_file(name), ahead)

    def _clock_file(self, name: str) -> Path:
        return self._logs / f"{name}.clock"

    def log_files(self) -> list[Path]:
        """Return the logs of all workers."""
        return [path for name in self._names if (path := self._logs / f"{name}.log").exists()]

    def tell_stacks(self) -> None:
        """Have every process write to its worker's log where it stands."""
        for name in self._names:
            for pid in self.family(name):
                with suppress(ProcessLookupError):
                    os.kill(pid, TELL_STACKS)

    @staticmethod
    def kill_child(pid: int) -> list[int]:
        """SIGKILL one pool process. Returns its pid, or nothing when it was gone already."""
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return []
        return [pid]

    def wait_ready(self, patience: timedelta = timedelta(minutes=3)) -> None:
        """Wait until each worker says that it consumes; from then on dead ones are replaced."""
        for name in self._names:
            wait_until(
                partial(self._is_ready, name), patience, f"{name} is ready; its log is in {self._logs}"
            )
        self._supervisor.start()

    def _is_ready(self, name: str) -> bool:
        if (status := self._processes[name].poll()) is not None:
            raise HarnessError(f"{name} did not start (status {status}): {self._last_words(name)}")
        return b" ready." in self._log(name)

    def _log(self, name: str) -> bytes:
        path = self._logs / f"{name}.log"
        return path.read_bytes() if path.exists() else b""

    def _last_words(self, name: str) -> str:
        lines = self._log(name).decode(errors="replace").splitlines()
        said = [line for line in lines if "CRITICAL" in line] or lines or ["it said nothing"]
        return said[-1]

    def _start(self, name: str) -> None:
        command = self._command
        if self._faketime is not None:
            variables = clock.faked(self._faketime, self._clock_file(name))
            command = replace(command, environment={**command.environment, **variables})
        with self._log_file(name) as log, self._lock:
            self._processes[name] = command.start(
                "unlost.chaos.worker",
                f"--name={name}",
                f"--concurrency={self._concurrency}",
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _log_file(self, name: str) -> IO[bytes]:
        return (self._logs / f"{name}.log").open("ab")

    def _supervise(self) -> None:
        while not self._stopping.wait(CHECK_EVERY.total_seconds()):
            for name in self._names:
                process = self._processes[name]
                if process.poll() not in (None, EXIT_CONFIGURATION):
                    _close(process)
                    self._start(name)


def _order(helper: subprocess.Popen[bytes], command: str) -> None:
    if helper.stdin is None or helper.stdout is None:
        raise HarnessError("the process that stops workers has no pipes")
    helper.stdin.write(f"{command}\n".encode())
    helper.stdin.flush()
    helper.stdout.readline()


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
