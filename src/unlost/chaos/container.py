"""Workers as containers: of an image with the user's project in it, killed through the engine's API.

A container shares network and process ids with its host: the run's broker, links and stores are on
127.0.0.1, and a pid means the same in the history, wherever it was written. Beside those it has the run's
folder. A run that dies leaves its containers behind; the next start on this machine removes them, as it does
with brokers.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from unlost.chaos.crew import Command, Maker, Worker
from unlost.errors import HarnessError
from unlost.testing.brokers.docker import (
    OWNER_LABEL,
    connect_engine,
    remove_orphans,
    translated_errors,
)
from unlost.testing.brokers.owner import own_name

#: So that the log is written as by a process on the host, whose reader need not know the difference.
_INTO_LOG = 'exec "$@" >>"$0" 2>&1'


#: What the engine answers about a container that does not run.
_NOT_RUNNING = 409

#: For the end of a container that was killed.
_PATIENCE = timedelta(seconds=60)


@dataclass(frozen=True, kw_only=True)
class WorkerImage:
    """What workers in containers are started from.

    Attributes:
        name: Of an image that the engine has, with ``python``, the app and ``unlost[chaos]`` on its paths.
        environment: Of the workers, beside what the run sets; nothing of this process's is theirs.
    """

    name: str
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


class WorkerContainer(Worker):
    """A worker in a container of its own, which is started again when it is dead.

    Args:
        name: Its name.
        command: How to start it; the environment is the container's.
        arguments: What it takes beside the fields of the command.
        log: The file for its output.
        image: What it is made from.
        folder: Of the run; the worker has it at the same path.
        engine: A client of the engine.
    """

    def __init__(
        self,
        name: str,
        command: Command,
        arguments: Sequence[str],
        log: Path,
        *,
        image: str,
        folder: Path,
        engine: Any,
    ) -> None:
        super().__init__(name, command, arguments, log)
        self._image = image
        self._folder = folder
        self._engine = engine
        self._made: Any = None
        #: Else a kill could wait for the end of the container that was started in the killed one's place.
        self._turn = threading.Lock()

    def start(self) -> None:
        """Start it."""
        with self._turn, translated_errors(f"start {self.name}"):
            if self._made is None:
                self._made = self._create()
            self._made.start()

    def _create(self) -> Any:
        python = ["python", *self._command.arguments("unlost.chaos.worker", *self._arguments)]
        return self._engine.containers.create(
            self._image,
            ["-c", _INTO_LOG, str(self.log), *python],
            entrypoint=["sh"],
            name=f"unlost-{self.name}-{secrets.token_hex(6)}",
            labels={OWNER_LABEL: own_name()},
            environment=dict(self._command.environment),
            volumes={str(self._folder): {"bind": str(self._folder), "mode": "rw"}},
            user=f"{os.getuid()}:{os.getgid()}",
            network_mode="host",
            pid_mode="host",
            # A worker ends with its input; the engine holds this one open.
            stdin_open=True,
        )

    def status(self) -> int | None:
        """Return with which status it ended."""
        state = self._state()
        return None if state["Running"] else int(state["ExitCode"])

    def _state(self) -> Mapping[str, Any]:
        if self._made is None:
            raise HarnessError(f"{self.name} was never started")
        with translated_errors(f"tell how {self.name} is"):
            self._made.reload()
            state: Mapping[str, Any] = self._made.attrs["State"]
        return state

    def family(self) -> list[int]:
        """Return the pids of the worker and its children."""
        parent = self._state()["Pid"]
        if not parent:
            return []
        listed: list[list[str]] = []
        with self._unless_gone("list the processes"):
            listed = self._made.top(ps_args="-o pid,ppid")["Processes"]
        return [parent, *(int(pid) for pid, of in listed if int(of) == parent)] if listed else []

    def kill(self, *, group: bool) -> None:  # noqa: ARG002 - a container never outlives its first process
        """SIGKILL the container: its children die with its first process."""
        with self._turn:
            self._go_on()  # the engine does not kill what is paused
            with self._unless_gone("kill"):
                self._made.kill(signal="SIGKILL")
            with translated_errors(f"wait for the end of {self.name}"):
                self._made.wait(timeout=_PATIENCE.total_seconds())

    def send(self, pid: int, number: signal.Signals) -> bool:
        """Send a signal to one of its processes, from within the container."""
        status: int = 1
        with self._unless_gone("send a signal"):
            status = self._made.exec_run(["sh", "-c", f"kill -{int(number)} {pid}"])[0]
        return status == 0

    @contextmanager
    def stopped(self) -> Iterator[list[int]]:
        """Freeze all its processes. If this process dies meanwhile they stay so until they are removed."""
        pids = self.family()
        with self._turn, self._unless_gone("be paused"):
            self._made.pause()
        try:
            yield pids
        finally:
            with self._turn:
                self._go_on()

    def _go_on(self) -> None:
        if self._state()["Paused"]:
            with self._unless_gone("go on"):
                self._made.unpause()

    def end(self) -> None:
        """Remove the container."""
        made, self._made = self._made, None
        if made is not None:
            with translated_errors(f"remove {self.name}"):
                made.remove(force=True, v=True)

    @contextmanager
    def _unless_gone(self, what: str) -> Iterator[None]:
        """Do nothing where the container has died meanwhile, as it does in such runs."""
        import docker.errors

        with translated_errors(f"{what} in {self.name}"):
            try:
                yield
            except docker.errors.APIError as exc:
                if exc.status_code != _NOT_RUNNING:
                    raise


def require_image(name: str, environ: Mapping[str, str]) -> None:
    """Find out whether workers can be made from an image, before anything else is started for them.

    Args:
        name: Of the image.
        environ: Where the engine is.

    Raises:
        HarnessError: No engine answers, or it has no such image.
    """
    import docker.errors

    with connect_engine(environ) as engine, translated_errors(f"be asked for the image {name}"):
        try:
            engine.images.get(name)
        except docker.errors.ImageNotFound as exc:
            raise HarnessError(
                f"the Docker engine has no image {name} for the workers: pull it, or build it with "
                "docker build or unlost.testing.images.build_image"
            ) from exc


@contextmanager
def container_maker(image: str, folder: Path, environ: Mapping[str, str]) -> Iterator[Maker]:
    """Yield what makes the workers of a crew, each in a container.

    Args:
        image: What they are made from.
        folder: Of the run.
        environ: Where the engine is.

    Raises:
        HarnessError: No engine answers.
    """
    with connect_engine(environ) as engine:
        with translated_errors("be searched for leftovers"):
            remove_orphans(engine)

        def make(name: str, command: Command, arguments: Sequence[str], log: Path) -> Worker:
            return WorkerContainer(name, command, arguments, log, image=image, folder=folder, engine=engine)

        yield make
