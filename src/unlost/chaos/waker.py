"""Stops processes, and continues them when it is told, or when whoever told it to stop them is gone.

Run as a script with the standard library only. A process that is stopped cannot notice that its run has
died; this one does, because its input ends.

Lines on its input are ``stop PID...`` and ``continue PID...``; each is answered with an empty line.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress


def main() -> None:
    """Serve until the input ends."""
    stopped: set[int] = set()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        for line in sys.stdin:
            command, *words = line.split()
            pids = [int(word) for word in words]
            if command == "stop":
                stopped.update(pids)
                _send(pids, signal.SIGSTOP)
            else:
                _send(pids, signal.SIGCONT)
                stopped.difference_update(pids)
            print(flush=True)
    finally:
        _send(stopped, signal.SIGCONT)


def _send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


if __name__ == "__main__":
    main()
