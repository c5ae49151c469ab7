"""The workers of a run: started, killed, and started again by a supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

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
        return subprocess.Popen(
            [sys.executable, *self.arguments(module, *arguments, bare=bare)],
            env=dict(self.environment),
            start_new_session=True,
            **popen,
        )

    def arguments(self, module: str, *arguments: str, bare: bool = False) -> list[str]:
        """Return what Python is given to run a module of the chaos kit."""
        ours = ["--workload", self.workload, "--options", self.options, "--history", str(self.history)]
        return ["-m", module, "--app", self.app, *([] if bare else ours), *arguments]


class Worker(ABC):
    """One worker of a crew, wherever it runs. It may be started again when it is dead.

    Args:
        name: Its name.
        command: How to start it.
        arguments: What it takes beside the fields of the command.
        log: The file for its output.
    """

    def __init__(self, name: str, command: Command, arguments: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._arguments = (f"--name={name}", *arguments)

    @abstractmethod
    def start(self) -> None:
        """Start it; not while it runs."""

    @abstractmethod
    def status(self) -> int | None:
        """Return with which status it ended; ``None`` while it runs."""

    @abstractmethod
    def family(self) -> list[int]:
        """Return the pids of the worker and its children, the worker's first; none while it is dead."""

    @abstractmethod
    def kill(self, *, group: bool) -> None:
        """SIGKILL the parent, whose children die with it, or the whole group at once; wait for its end."""

    @abstractmethod
    def send(self, pid: int, number: signal.Signals) -> bool:
        """Send a signal to one of its processes. Returns whether it was there."""

    @abstractmethod
    def stopped(self) -> AbstractContextManager[list[int]]:
        """Stop it with its children for as long as the block; yields their pids."""

    @abstractmethod
    def end(self) -> None:
        """Kill it, and leave nothing of it behind; a second call does nothing."""


class WorkerProcess(Worker):
    """A worker that is a child of this process, with a process group of its own.

    Args:
        name: Its name.
        command: How to start it.
        arguments: What it takes beside the fields of the command.
        log: The file for its output.
        module: What to start.
    """

    def __init__(
        self,
        name: str,
        command: Command,
        arguments: Sequence[str],
        log: Path,
        *,
        module: str = "unlost.chaos.worker",
    ) -> None:
        super().__init__(name, command, arguments, log)
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as log, self._lock:
            if self._process is not None:
                _close(self._process)
            self._process = self._command.start(
                self._module,
                *self._arguments,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def status(self) -> int | None:
        """Return with which status it ended."""
        return self._running().poll()

    def family(self) -> list[int]:
        """Return the pids of the worker and its children."""
        with self._lock:
            process = self._running()
            if process.poll() is not None:
                return []
            with suppress(psutil.Error):
                return [process.pid, *(child.pid for child in psutil.Process(process.pid).children())]
        return [process.pid]

    def kill(self, *, group: bool) -> None:
        """SIGKILL the parent, or the whole group."""
        with self._lock:
            process = self._running()
            if group:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
            _close(process)

    def send(self, pid: int, number: signal.Signals) -> bool:
        """Send a signal to one of its processes."""
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    @contextmanager
    def stopped(self) -> Iterator[list[int]]:
        """SIGSTOP it with its children.

        They go on also when this process dies meanwhile, and then end as all workers of a dead run do.
        """
        pids = self.family()
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

    def end(self) -> None:
        """Kill it."""
        if self._process is not None:
            self.kill(group=False)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise HarnessError(f"{self.name} was never started")
        return self._process


#: Makes a worker of its name, its command, its arguments and the file for its output.
Maker = Callable[[str, Command, Sequence[str], Path], Worker]


class Crew:
    """Workers that are replaced when they die, as under any process manager.

    Args:
        command: How to start one.
        size: How many.
        concurrency: Pool processes of each.
        logs: Folder for their output, one file each.
        faketime: The library that lets their wall clocks be set; ``None`` leaves them alone.
        make: Makes each of them.
    """

    def __init__(
        self,
        command: Command,
        *,
        size: int,
        concurrency: int,
        logs: Path,
        faketime: Path | None = None,
        make: Maker = WorkerProcess,
    ) -> None:
        self._faketime = faketime
        self._logs = logs
        names = [f"worker-{number}" for number in range(1, size + 1)]
        self._workers = {
            name: make(
                name, self._timed(command, name), [f"--concurrency={concurrency}"], logs / f"{name}.log"
            )
            for name in names
        }
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="unlost-crew", daemon=True)

    def __enter__(self) -> Crew:
        try:
            for worker in self._workers.values():
                worker.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        self._end()

    def _end(self) -> None:
        with ExitStack() as ends:
            for worker in self._workers.values():
                ends.callback(worker.end)

    @property
    def names(self) -> Sequence[str]:
        """Return the workers' names."""
        return list(self._workers)

    def children(self, name: str) -> list[int]:
        """Return the pool processes of a worker, as they are now."""
        return self.family(name)[1:]

    def family(self, name: str) -> list[int]:
        """Return the pids of a worker and its children; none while it is dead."""
        return self._workers[name].family()

    def kill_parent(self, name: str) -> list[int]:
        """SIGKILL a worker's parent; its children die with it. Returns the pids of those that lived."""
        return self._kill(name, group=False)

    def kill_group(self, name: str) -> list[int]:
        """SIGKILL a worker's parent and children at once. Returns the pids of those that lived."""
        return self._kill(name, group=True)

    def _kill(self, name: str, *, group: bool) -> list[int]:
        pids = self.family(name)
        self._workers[name].kill(group=group)
        return pids

    def kill_child(self, name: str, pid: int) -> list[int]:
        """SIGKILL a pool process of a worker. Returns its pid, or nothing when it was gone already."""
        return [pid] if self._workers[name].send(pid, signal.SIGKILL) else []

    def stopped(self, name: str) -> AbstractContextManager[list[int]]:
        """Stop a worker with its children for as long as the block; yields their pids."""
        return self._workers[name].stopped()

    def set_ahead(self, name: str, ahead: timedelta) -> None:
        """Set the wall clock of a worker and its children ahead, or behind; zero sets it right.

        Raises:
            HarnessError: The crew was started without libfaketime.
        """
        if self._faketime is None:
            raise HarnessError("clocks can only be set where libfaketime is installed")
        clock.set_ahead(self._clock_file(name), ahead)

    def _timed(self, command: Command, name: str) -> Command:
        if self._faketime is None:
            return command
        variables = clock.faked(self._faketime, self._clock_file(name))
        return replace(command, environment={**command.environment, **variables})

    def _clock_file(self, name: str) -> Path:
        return self._logs / f"{name}.clock"

    def log_files(self) -> list[Path]:
        """Return the logs of all workers."""
        return [worker.log for worker in self._workers.values() if worker.log.exists()]

    def tell_stacks(self) -> None:
        """Have every process write to its worker's log where it stands."""
        for worker in self._workers.values():
            for pid in worker.family():
                worker.send(pid, TELL_STACKS)

    def wait_ready(self, patience: timedelta = timedelta(minutes=3)) -> None:
        """Wait until each worker says that it consumes; from then on dead ones are replaced."""
        for worker in self._workers.values():
            wait_until(
                partial(_is_ready, worker), patience, f"{worker.name} is ready; its log is in {self._logs}"
            )
        self._supervisor.start()

    def _supervise(self) -> None:
        while not self._stopping.wait(CHECK_EVERY.total_seconds()):
            for worker in self._workers.values():
                if worker.status() not in (None, EXIT_CONFIGURATION):
                    worker.start()


def _is_ready(worker: Worker) -> bool:
    said = worker.log.read_bytes() if worker.log.exists() else b""
    if (status := worker.status()) is not None:
        raise HarnessError(f"{worker.name} did not start (status {status}): {_last_words(said)}")
    return b" ready." in said


def _last_words(said: bytes) -> str:
    lines = said.decode(errors="replace").splitlines()
    told = [line for line in lines if "CRITICAL" in line] or lines or ["it said nothing"]
    return told[-1]


def _order(helper: subprocess.Popen[bytes], command: str) -> None:
    if helper.stdin is None or helper.stdout is None:
        raise HarnessError("the process that stops workers has no pipes")
    helper.stdin.write(f"{command}\n".encode())
    helper.stdin.flush()
    helper.stdout.readline()


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
