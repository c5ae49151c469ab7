"""Ways for a task's process to end, or its body to fail."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from pathlib import Path

#: Bytes; a larger limit is no container of ours.
MOST = 1024**3


def run_out_of_memory() -> None:
    """Allocate until the process's limit, which is a little above what it has for now, refuses."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 64 * 1024 * 1024, hard))
    hoard = []
    try:
        while True:
            hoard.append(bytearray(1024 * 1024))
    finally:
        # The process lives on, and its next task is not to suffer for this one.
        hoard.clear()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def eat_all_memory() -> None:
    """Take memory until the kernel kills this process, whose control group must have a limit."""
    limits = (Path("/sys/fs/cgroup", name) for name in ("memory/memory.limit_in_bytes", "memory.max"))
    told = next(path.read_text().strip() for path in limits if path.exists())
    if told == "max" or int(told) > MOST:
        raise RuntimeError(f"not here: the limit is {told}, and others would be killed")
    hoard = []
    while True:
        hoard.append(b"x" * (1024 * 1024))


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
        case "eat":
            eat_all_memory()
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
