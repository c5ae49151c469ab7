"""Ports that stay ours while nobody listens on them."""

from __future__ import annotations

import secrets
import socket

from unlost.errors import HarnessError

# Below the range that Linux and macOS take outgoing ports from (32768 and 49152 upwards). In that
# range, a client that retries a killed broker's port can be given the very port it connects to,
# connect to itself, and keep the broker from coming back.
_LOWEST, _HIGHEST = 20_000, 29_999
_TRIES = 1_000


def free_ports(count: int) -> list[int]:
    """Pick distinct random TCP ports that nobody on 127.0.0.1 listens on.

    They are free when this returns and not reserved: whoever starts on one may be too late.

    Raises:
        HarnessError: The range is as good as full.
    """
    ports: set[int] = set()
    for _ in range(_TRIES):
        if len(ports) == count:
            return sorted(ports)
        candidate = _LOWEST + secrets.randbelow(_HIGHEST - _LOWEST + 1)
        if _is_free(candidate):
            ports.add(candidate)
    raise HarnessError(f"no {count} free TCP ports between {_LOWEST} and {_HIGHEST} on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
