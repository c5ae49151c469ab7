"""Reads from a connection what is there, instead of three times for each frame and a turn for each delivery.

py-amqp asks the socket for a frame's head, body and end one by one, nine system calls for a delivery. What
it is given too much it keeps for the next read, so it may be given all there is. Kombu then goes round its
event loop once more after each delivery, to find that there is no other.
"""

from __future__ import annotations

import errno
from typing import Any

from amqp.exceptions import RecoverableConnectionError

#: Bytes asked for at least; a few deliveries. What is left over is copied with each read.
AHEAD = 16 * 1024

#: So many deliveries are handled before the event loop sees to something else.
AT_ONCE = 16

_UNAVAILABLE = (errno.EAGAIN, errno.EINTR)


def read_ahead(transport: Any) -> None:
    """Have a transport of py-amqp ask its socket for more than the next bytes.

    Only for a connection whose reader goes on until nothing is left (:func:`read_all`): what was read ahead
    no longer makes the socket readable.

    Args:
        transport: Connected, plain or with TLS.
    """
    receive = transport._quick_recv

    def receive_more(least: int) -> bytes:
        received: bytes = receive(max(least, AHEAD))
        return received

    transport._quick_recv = receive_more


def read_all(connection: Any, loop: Any) -> None:
    """Handle what a connection has read or can read at once; an event loop's reader, as kombu's own.

    What is in the socket makes it readable again, so only what was taken out of it must not be left.

    Args:
        connection: Of py-amqp.
        loop: Of kombu.

    Raises:
        RecoverableConnectionError: It is not connected any more.
        OSError: It ended just now.
    """
    if not connection.connected:
        raise RecoverableConnectionError("Socket was disconnected")
    try:
        for _ in range(AT_ONCE):
            connection.drain_events(timeout=0)
            if not _has_read_more(connection.transport):
                return
    except TimeoutError:
        return
    except OSError as exc:
        if exc.errno in _UNAVAILABLE:
            return
        raise
    loop.call_soon(read_all, connection, loop)


def _has_read_more(transport: Any) -> bool:
    """Whether bytes are here that no longer make the socket readable; TLS keeps the rest of a record too."""
    if transport is None:
        return False
    pending = getattr(transport.sock, "pending", None)
    return bool(transport._read_buffer) or bool(pending and pending())
