"""Who holds a lease: a name that tells a worker on the same host whether the holder still lives.

A holder is made in the worker's parent, one for each delivery. When a parent is killed its children die
with it (Celery sets PR_SET_PDEATHSIG), so nobody ends their leases; but whoever finds such a lease on
the same host, in the same boot and the same PID namespace, can see that the process is gone and take
over at once instead of waiting for the lease to expire.
"""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

_PROC = Path("/proc")


def make_holder() -> str:
    """Return a new holder for one delivery: ``nonce@host/boot/namespace/pid/start``."""
    pid = os.getpid()
    return f"{uuid.uuid4().hex}@{_host()}/{pid}/{_start_time(pid)}"


def is_gone(holder: str) -> bool:
    """Return whether the holder's process is known to be dead; false also means "cannot tell"."""
    place = holder.partition("@")[2]
    host, _, process = place.rpartition("/")
    host, _, pid = host.rpartition("/")
    if not pid.isdigit():
        return False
    if host == _host():
        return _start_time(int(pid)) != process
    return _rebooted(host)


def _rebooted(host: str) -> bool:
    """Whether this is the host the holder ran on, booted again since."""
    name, _, rest = host.partition("/")
    own_name, _, own_rest = _host().partition("/")
    return name == own_name and rest.partition("/")[0] != own_rest.partition("/")[0]


def _host() -> str:
    """Return ``hostname/boot id/PID namespace``: a PID means something only inside all three."""
    return f"{socket.gethostname()}/{_boot_id()}/{_namespace()}"


def _boot_id() -> str:
    return _read(_PROC / "sys/kernel/random/boot_id")[:8] or "?"


def _namespace() -> str:
    try:
        return str((_PROC / "self/ns/pid").readlink()).strip("pid:[]")
    except OSError:
        return "?"


def _start_time(pid: int) -> str:
    """Return the start time of a live process in clock ticks since boot; empty when it is dead.

    A zombie has run its last instruction, so it counts as dead (proc(5): state is field 3, starttime 22).
    """
    fields = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in "ZX":
        return ""
    return fields[19]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
