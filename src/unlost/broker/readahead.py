"""Reads from a connection what is there, instead of three times for each frame and a turn for each delivery.

py-amqp asks the socket for a frame's head, body and end one by one, nine system calls for a delivery. What
it is given too much it keeps for the next read, so it may be given all there is. Kombu then goes round its
event loop once more after each delivery, to find that there is no other.
"""

from __future__ import annotations

import errno
import socket
import ssl
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
    # With TLS the library reads for itself, and takes no flags.
    transport.can_ask = not isinstance(transport.sock, ssl.SSLSocket)
    transport.flags = 0

    def receive_more(least: int) -> bytes:
        size = max(least, AHEAD)
        received: bytes = receive(size, transport.flags) if transport.flags else receive(size)
        return received

    transport._quick_recv = receive_more


def read_all(connection: Any, loop: Any) -> None:
    """Handle what a connection has read or can read at once; an event loop's reader, as kombu's own.

    What is in the socket makes it readable again, so only what was taken out of it must not be left.

    Args:
        connection: Of py-amqp, whose transport reads ahead.
        loop: Of kombu.

    Raises:
        RecoverableConnectionError: It is not connected any more.
        OSError: It ended just now.
    """
    if not connection.connected:
        raise RecoverableConnectionError("Socket was disconnected")
    try:
        for _ in range(AT_ONCE):
            _handle_one(connection)
            if not _has_read_more(connection.transport):
                return
    except TimeoutError:
        return
    except OSError as exc:
        if exc.errno in _UNAVAILABLE:
            return
        raise
    loop.call_soon(read_all, connection, loop)


def _handle_one(connection: Any) -> None:
    """Handle one method, and its content.

    Raises:
        TimeoutError: It is not all here yet; what is here is kept.
    """
    transport = connection.transport
    if not transport.can_ask:
        connection.drain_events(timeout=0)
        return
    is_handled = False
    while not is_handled:
        # Asked read by read not to wait: py-amqp makes the socket so, and back again, for each frame. Whoever
        # handles the frame finds the socket as ever.
        transport.flags = socket.MSG_DONTWAIT
        try:
            frame = transport.read_frame()
        finally:
            transport.flags = 0
        is_handled = connection.on_inbound_frame(frame)


def _has_read_more(transport: Any) -> bool:
    """Whether bytes are here that no longer make the socket readable; TLS keeps the rest of a record too."""
    if transport is None:
        return False
    return bool(transport._read_buffer) or (not transport.can_ask and bool(transport.sock.pending()))
