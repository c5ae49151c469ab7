"""Children that are killed by the dozen: forked from one process that has imported all they need.

A Python that starts anew takes a second to import what a child of this one has at once. As a script it reads
one JSON value a line, hands each to ``main`` of a module in a forked child, and says how that ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit status, or the negative number of the signal that killed it."""

    returncode: int
    stdout: str
    stderr: str


class Forks:
    """Runs a module's ``main`` in one child after another.

    Args:
        process: This module as a script, with pipes.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, settings: Any) -> Ended:
        """Run ``main(settings)`` in a child, and wait for its end."""
        if self._process.stdin is None or self._process.stdout is None:
            raise OSError("no pipes to the process that forks")
        self._process.stdin.write(json.dumps(settings) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))


@contextmanager
def forks(module: str) -> Iterator[Forks]:
    """Yield children of a module; the process that forks them ends with the block."""
    command = [sys.executable, "-m", "tests.support.forks", module]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Forks(process)
        finally:
            process.kill()


def _serve(main: Callable[[Any], None]) -> None:
    for line in sys.stdin:
        with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
            child = os.fork()
            if child == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os._exit(_outcome(main, json.loads(line)))
            _, status = os.waitpid(child, 0)
            said = [_content(out), _content(err)]
        print(json.dumps(dict(zip(("stdout", "stderr"), said, strict=True)) | {"returncode": _code(status)}))
        sys.stdout.flush()


def _outcome(main: Callable[[Any], None], settings: Any) -> int:
    try:
        main(settings)
    except BaseException:  # noqa: BLE001 - said, and the child ends
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _content(file: Any) -> str:
    file.seek(0)
    return str(file.read())


def _code(status: int) -> int:
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    _serve(import_module(sys.argv[1]).main)
