"""Who holds a lease: a name that tells a worker on the same host whether the holder still lives.

A holder is made in the worker's parent, one for each delivery. When a parent is killed its children die
with it (Celery sets PR_SET_PDEATHSIG), so nobody ends their leases; but whoever finds such a lease on
the same host, in the same boot and the same PID namespace, can see that the process is gone and take
over at once instead of waiting for the lease to expire.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from pathlib import Path

_PROC = Path("/proc")

#: In place of what could not be read: it equals nothing and differs from nothing.
UNKNOWN = "?"


def make_holder() -> str:
    """Return a new holder for one delivery: ``nonce@host/boot/namespace/pid/start``."""
    pid = os.getpid()
    place = _own_place(pid)
    if UNKNOWN in place:
        # Asked again next time: what could not be read now may be readable then.
        _own_place.cache_clear()
    return f"{next(_nonces(pid)):x}@{place}"


@lru_cache(maxsize=1)
def _nonces(pid: int) -> Iterator[int]:  # noqa: ARG001 - a fork has its own
    """Return numbers that this process uses once; a random beginning tells it from any other process.

    Counted, for a random number each would be a system call at every delivery.
    """
    return count(secrets.randbits(120))


@lru_cache(maxsize=1)
def _own_place(pid: int) -> str:
    """Return what a holder says of its process, and what no process ever changes; a fork has another PID."""
    return f"{_host()}/{pid}/{_start_time(pid)}"


def is_gone(holder: str) -> bool:
    """Return whether the holder's process is known to be dead; false also means "cannot tell"."""
    host, pid, started = _parts(holder)
    if not pid.isdecimal():
        return False
    if host == _host():
        now = _start_time(int(pid))
        return UNKNOWN not in (started, now) and started != now
    return host.partition("/")[0] == socket.gethostname() and is_of_another_boot(holder)


def is_of_another_boot(holder: str) -> bool:
    """Return whether the holder's kernel is known to be another one than ours.

    Where a store serves a single host, such a holder is dead, and the boot-time clock of its lease has
    begun anew. A container often has another host name after a reboot, so the name is not asked.
    """
    _, _, rest = _parts(holder)[0].partition("/")
    boot, own = rest.partition("/")[0], _boot_id()
    return UNKNOWN not in (boot, own) and bool(boot) and boot != own


def _parts(holder: str) -> tuple[str, str, str]:
    """Return host, PID and start time."""
    rest, _, started = holder.partition("@")[2].rpartition("/")
    host, _, pid = rest.rpartition("/")
    return host, pid, started


def _host() -> str:
    """Return ``hostname/boot id/PID namespace``: a PID means something only inside all three."""
    return f"{socket.gethostname()}/{_boot_id()}/{_namespace()}"


def _boot_id() -> str:
    return (_read(_PROC / "sys/kernel/random/boot_id") or UNKNOWN)[:8]


def _namespace() -> str:
    try:
        return str((_PROC / "self/ns/pid").readlink()).strip("pid:[]")
    except OSError:
        return UNKNOWN


def _start_time(pid: int) -> str:
    """Return the start time of a live process in clock ticks since boot; empty when it is dead.

    A zombie has run its last instruction, so it counts as dead (proc(5): state is field 3, starttime 22).
    """
    stat = _read(_PROC / str(pid) / "stat")
    fields = stat.rpartition(")")[2].split()
    if stat == UNKNOWN or (fields and len(fields) < 20):
        return UNKNOWN
    return "" if not fields or fields[0] in "ZX" else fields[19]


def _read(path: Path) -> str:
    """Return a file's text, empty when there is none; no descriptor left to read it with is no proof."""
    try:
        return path.read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    except OSError:
        return UNKNOWN
