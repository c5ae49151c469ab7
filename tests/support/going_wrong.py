"""Ways for a task's process to end, or its body to fail."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from pathlib import Path


def run_out_of_memory() -> None:
    """Allocate until the process's limit, which is a little above what it has, refuses."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 64 * 1024 * 1024,) * 2)
    hoard = []
    while True:
        hoard.append(bytearray(1024 * 1024))


def go_wrong(what: str) -> None:
    """End this process, or raise, in the way named."""
    match what:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60)
        case "fault":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "oom":
            run_out_of_memory()
        case "exit":
            sys.exit(3)
        case "_exit":
            os._exit(3)
        case "memory":
            raise MemoryError
        case "raise":
            raise RuntimeError("after the fact")
        case "kill-parent":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
