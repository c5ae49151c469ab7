"""Ways for a task's process to end, or its body to fail."""

from __future__ import annotations

import os
import signal
import sys
import time


def go_wrong(what: str) -> None:
    """End this process, or raise, in the way named."""
    match what:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60)
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
