"""A private server in the care of a guardian process: commands to it, and its end."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from unlost.errors import HarnessError
from unlost.testing.brokers import guardian

_ANSWER_PATIENCE = timedelta(seconds=60)  # a clean stop may take half of it
_CLOSE_PATIENCE = timedelta(seconds=15)


class Ward:
    """A server that ends when this process does, however that ends.

    Args:
        directory: What the server may write to; removed at the end.
        lock: A descriptor that is handed to the guardian (see ``make_directory``).
        specification: See :class:`unlost.testing.brokers.guardian.Guardian`.
    """

    def __init__(self, directory: Path, lock: int, specification: dict[str, Any]) -> None:
        self._directory = directory
        self._turn = threading.Lock()
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(guardian.__file__)), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={},
            start_new_session=True,  # out of reach of the terminal's Ctrl-C
            pass_fds=(lock,),
        )
        _write(self._guardian, json.dumps(specification))

    @staticmethod
    @contextmanager
    def making(directory: Path, lock: int) -> Iterator[None]:
        """Remove the directory again if the block fails, and leave the lock to the guardian."""
        try:
            yield
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        finally:
            os.close(lock)

    @property
    def pid(self) -> int:
        """Return the guardian's process id."""
        return self._guardian.pid

    def tell(self, command: str, whose: str) -> dict[str, Any]:
        """Have the guardian do something; one at a time, whichever thread asks.

        Args:
            command: ``start``, ``stop``, ``kill``, ``pause``, ``resume`` or ``status``.
            whose: What to call the server in an error.

        Raises:
            HarnessError: It could not be done.
        """
        with self._turn:
            try:
                answer = _ask(self._guardian, command)
            except (OSError, ValueError) as exc:
                raise HarnessError(
                    f"the guardian of {whose} has ended, and the server with it: start a new one ({exc})"
                ) from exc
        if answer["error"]:
            raise HarnessError(f"{whose}: {command}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Kill the server and remove its directory; a second call does nothing."""
        if self._guardian.stdin is None or self._guardian.stdin.closed:
            return
        self._guardian.stdin.close()
        try:
            self._guardian.wait(_CLOSE_PATIENCE.total_seconds())
        except subprocess.TimeoutExpired:
            self._guardian.kill()  # the kernel ends the server with it
            self._guardian.wait()
        if self._guardian.stdout is not None:
            self._guardian.stdout.close()
        shutil.rmtree(self._directory, ignore_errors=True)


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
