"""A private RabbitMQ node on this machine, from an installed ``rabbitmq-server``."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from unlost.errors import HarnessError
from unlost.testing.brokers import guardian
from unlost.testing.brokers.base import Broker
from unlost.testing.brokers.node import Node, Programs, find_programs, make_directory, make_node

_ANSWER_PATIENCE = timedelta(seconds=60)  # a clean stop may take half of it
_CLOSE_PATIENCE = timedelta(seconds=15)
_LOG_LINES = 20


class LocalBroker(Broker):
    """A node of its own name, ports and data, bound to 127.0.0.1; needs no root.

    However this process ends, the node ends with it (see :mod:`unlost.testing.brokers.guardian`).

    Args:
        environ: ``PATH`` to find RabbitMQ on, ``TMPDIR`` for its data.

    Raises:
        HarnessError: RabbitMQ is not installed, or the node did not come up.
    """

    provider = "local"
    can = frozenset({"kill", "restart", "pause"})

    def __init__(self, environ: Mapping[str, str]) -> None:
        programs = find_programs(environ)
        if isinstance(programs, str):
            raise HarnessError(programs)
        self._node, self._guardian = _start_guardian(environ, programs)
        self._turn = threading.Lock()
        super().__init__(self._node.amqp, self._node.management)
        try:
            self._tell("start")
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    def kill(self) -> None:
        """Kill the node with SIGKILL, paused or not."""
        self._tell("kill")

    def restart(self) -> None:
        """Start the node again on the same ports and data, after a kill or after a clean stop."""
        self._tell("stop")
        self._tell("start")
        self._wait_ready()

    def pause(self) -> None:
        """Stop the node's process where it is (SIGSTOP)."""
        self._tell("pause")

    def resume(self) -> None:
        """Let a paused node go on (SIGCONT)."""
        self._tell("resume")

    def close(self) -> None:
        """Kill the node and remove its directory."""
        if self._guardian.stdin is None or self._guardian.stdin.closed:
            return
        self._guardian.stdin.close()
        try:
            self._guardian.wait(_CLOSE_PATIENCE.total_seconds())
        except subprocess.TimeoutExpired:
            self._guardian.kill()  # the kernel ends the node with it
            self._guardian.wait()
        if self._guardian.stdout is not None:
            self._guardian.stdout.close()
        shutil.rmtree(self._node.directory, ignore_errors=True)

    def pids(self) -> dict[str, int | None]:
        """Return the process ids of ``guardian``, ``epmd`` and ``server``; ``None`` for one that ended."""
        answer = self._tell("status")
        return {"guardian": self._guardian.pid, "epmd": answer["epmd"], "server": answer["server"]}

    def _has_ended(self) -> bool:
        return self.pids()["server"] is None

    def _last_lines(self) -> str:
        try:
            lines = self._node.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(lines[-_LOG_LINES:])

    def _tell(self, command: str) -> dict[str, Any]:
        """Have the guardian do something; one at a time, whichever thread asks."""
        with self._turn:
            try:
                answer = _ask(self._guardian, command)
            except (OSError, ValueError) as exc:
                raise HarnessError(
                    f"the guardian of the private node at {self._amqp.place} has ended, and the node with "
                    f"it: start a new broker ({exc})"
                ) from exc
        if answer["error"]:
            raise HarnessError(f"the private node at {self._amqp.place}: {command}: {answer['error']}")
        return answer


def unavailable(environ: Mapping[str, str]) -> str | None:
    """Say why no private node can be started, or ``None``."""
    programs = find_programs(environ)
    return programs if isinstance(programs, str) else None


def _start_guardian(environ: Mapping[str, str], programs: Programs) -> tuple[Node, subprocess.Popen[bytes]]:
    directory, lock = make_directory(environ)
    try:
        node = make_node(directory, programs)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(guardian.__file__)), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={},
            start_new_session=True,  # out of reach of the terminal's Ctrl-C
            pass_fds=(lock,),
        )
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    finally:
        os.close(lock)
    _write(process, json.dumps(node.specification))
    return node, process


def _ask(process: subprocess.Popen[bytes], command: str) -> dict[str, Any]:
    _write(process, command)
    answer: dict[str, Any] = json.loads(_read_line(process))
    return answer


def _write(process: subprocess.Popen[bytes], line: str) -> None:
    if process.stdin is None:
        raise ValueError("the guardian has no input")
    process.stdin.write(f"{line}\n".encode())


def _read_line(process: subprocess.Popen[bytes]) -> bytes:
    """Read one answer.

    Raises:
        ValueError: The guardian closed its output.
        TimeoutError: No answer in time.
    """
    if process.stdout is None:
        raise ValueError("the guardian has no output")
    line, deadline = b"", time.monotonic() + _ANSWER_PATIENCE.total_seconds()
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError("no answer")
        if not (chunk := process.stdout.read(4096)):
            raise ValueError("no answer")
        line += chunk
    return line
