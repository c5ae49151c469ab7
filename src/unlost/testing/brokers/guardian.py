"""Keeps a private server (RabbitMQ, a database) from outliving the process that asked for it.

Run as a script by :mod:`unlost.testing.brokers.ward`, in a session of its own; it uses the standard
library only and starts in milliseconds. It owns the node's directory::

    parent ──stdin: one JSON line of specification, then one command a line──▶ guardian ─┬─ epmd
           ◀──stdout: one JSON line an answer───────────────────────────────             └─ beam

It ends when its input does, which the kernel brings about however the parent ends, or when it finds
itself with another parent (a fork of the old one may hold the pipe open). Then it kills both
children and removes the directory. Should the guardian itself be killed, the kernel kills its
children (``prctl(PR_SET_PDEATHSIG)``, Linux) and only the directory stays, to be swept by the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_ORPHAN_CHECK_SECONDS = 1.0
_EPMD_SECONDS = 10.0
_STOP_SECONDS = 30.0


class Guardian:
    """The server, for RabbitMQ also its port mapper, and what can be done to them.

    Args:
        spec: ``directory``, ``server`` (argument list), ``log`` (path), ``environ``; ``epmd`` (argument
            list) and ``epmd_port`` for a RabbitMQ node; ``family`` if the server's own children (those
            of PostgreSQL leave its session) must be killed and paused with it.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._killed: list[int] = []

    def start(self) -> None:
        """Start what does not run; epmd listens before the node could start one that stays behind."""
        if self._spec.get("epmd") and (self._epmd is None or self._epmd.poll() is not None):
            self._epmd = self._spawn(self._spec["epmd"])
            self._wait_for_epmd(self._epmd)
        if self._server is None or self._server.poll() is not None:
            self._server = self._spawn(self._spec["server"])

    def kill(self) -> None:
        """SIGKILL the node and see it end; works on a paused one, too."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop the node cleanly, with SIGKILL as the last resort."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Freeze the node."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the node go on."""
        self._signal(signal.SIGCONT)

    def status(self) -> None:
        """Do nothing but answer."""

    def pids(self) -> dict[str, int | None]:
        """Return the process ids of those that run."""
        return {
            name: child.pid if child and child.poll() is None else None
            for name, child in (("epmd", self._epmd), ("server", self._server))
        }

    def close(self) -> None:
        """Kill both and remove the directory."""
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
        shutil.rmtree(self._spec["directory"], ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        server = self._server
        if server is None:
            return
        self._signal(number)
        if number is not signal.SIGKILL:
            self._signal(signal.SIGCONT)  # a frozen process handles nothing else
        try:
            server.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        # What they share (PostgreSQL's memory) keeps the next server from starting.
        _see_gone(self._killed)

    def _signal(self, number: signal.Signals) -> None:
        server = self._server
        if server is None:
            return
        has_family = self._spec.get("family")
        if has_family and number in (signal.SIGKILL, signal.SIGSTOP):
            _freeze(server.pid)
        # Looked up first: of a parent that is dead nobody is a child.
        family = descendants(server.pid) if has_family else []
        server.send_signal(number)
        for pid in family if number is not signal.SIGTERM else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        self._killed = family if number is signal.SIGKILL else []

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with Path(self._spec["log"]).open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._spec["directory"],
                env=self._spec["environ"],
                preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509 - this process has one thread
            )

    def _wait_for_epmd(self, epmd: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _EPMD_SECONDS
        while epmd.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self._spec["epmd_port"]), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise RuntimeError(f"epmd does not listen on port {self._spec['epmd_port']}")


def descendants(pid: int) -> list[int]:
    """Return the process ids of children, their children and so on (proc(5): field 4 is the parent)."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, ahead = [], [pid]
    while ahead:
        ahead = [child for parent in ahead for child in children.get(parent, [])]
        found += ahead
    return found


def _freeze(pid: int) -> None:
    """Stop a child, and see that it stands: from here on it has no further children."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


def _see_gone(pids: list[int]) -> None:
    """Return when none of these runs any more, or after a while."""
    deadline = time.monotonic() + _STOP_SECONDS
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.005)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _die_with(guardian: int) -> Any:
    """Return what makes a child die with this process."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guardian:  # it died before the kernel was asked
            os._exit(1)

    return ask_kernel


def _lines(parent: int) -> Any:
    """Yield the lines of standard input until it ends or the parent is gone."""
    pending = b""
    while os.getppid() == parent:
        ready, _, _ = select.select([0], [], [], _ORPHAN_CHECK_SECONDS)
        if not ready:
            continue
        if not (chunk := os.read(0, 65_536)):
            return
        *complete, pending = (pending + chunk).split(b"\n")
        yield from complete


def _serve(guardian: Guardian, commands: Any) -> None:
    actions = {
        action.__name__: action
        for action in (
            guardian.start,
            guardian.stop,
            guardian.kill,
            guardian.pause,
            guardian.resume,
            guardian.status,
        )
    }
    for command in commands:
        error = ""
        try:
            actions[command.decode()]()
        except (OSError, RuntimeError) as exc:
            error = str(exc)
        print(json.dumps({"error": error, **guardian.pids()}), flush=True)


def main() -> None:
    """Serve the parent, whose process id is the only argument, until it ends."""
    # A handler, not SIG_IGN: that would be inherited by the children.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    lines = _lines(int(sys.argv[1]))
    specification = next(lines, None)
    if specification is None:
        return
    guardian = Guardian(json.loads(specification))
    try:
        _serve(guardian, lines)
    except BrokenPipeError:
        pass  # nobody reads the answers: the parent is gone
    finally:
        guardian.close()


if __name__ == "__main__":
    main()
