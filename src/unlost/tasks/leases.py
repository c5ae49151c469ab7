"""The parent of a worker renews the leases of all its children, in one statement.

A thread in the child would stop with a body that holds the interpreter lock; a child that is stopped
(SIGSTOP) or dead must not be renewed, so its process state is looked at first.
"""

from __future__ import annotations

import logging
import os
import threading
from datetime import timedelta
from pathlib import Path

from unlost.core.ports import Ledger

logger = logging.getLogger(__name__)

RENEWALS_PER_LEASE = 3


class LeaseKeeper:
    """Keeps the leases of running requests alive.

    Args:
        ledger: Where the leases are.
        lease: How long a renewed lease lasts; renewed three times as often.
    """

    def __init__(self, ledger: Ledger, lease: timedelta) -> None:
        self._ledger = ledger
        self._lease = lease
        self._held: dict[str, int] = {}
        self._thread: threading.Thread | None = None

    def add(self, holder: str, pid: int) -> None:
        """Renew this holder's lease from now on, while process ``pid`` runs."""
        self._held[holder] = pid
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._keep, name="unlost-leases", daemon=True)
            self._thread.start()

    def drop(self, holder: str) -> None:
        """Renew it no more."""
        self._held.pop(holder, None)

    def renew(self) -> None:
        """Renew once; a store that cannot be reached is tried again at the next turn."""
        # dict.copy is atomic under the interpreter lock, iteration is not.
        running = [holder for holder, pid in self._held.copy().items() if _runs(pid)]
        try:
            self._ledger.renew(running, self._lease)
        except Exception:
            # Whatever it was: a keeper that ends would let every lease expire.
            logger.exception("leases could not be renewed, trying again")

    def _keep(self) -> None:
        pause = threading.Event()
        while not pause.wait(self._lease.total_seconds() / RENEWALS_PER_LEASE):
            self.renew()


def _runs(pid: int) -> bool:
    """Whether a process can make progress: neither gone, nor a zombie, nor stopped (proc(5))."""
    if pid == os.getpid():
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        # Another platform, or a green pool whose "pid" is no process: the request alone must do.
        return not Path("/proc/self").exists() or pid > 2**22
    return state not in "TtZX"
