"""Reads from a connection what is there, instead of three times for each frame and a turn for each delivery.

py-amqp asks the socket for a frame's head, body and end one by one, nine system calls for a delivery. What
it is given too much it keeps for the next read, so it may be given all there is. Kombu then goes round its
event loop once more after each delivery, to find that there is no other.
"""

from __future__ import annotations

import errno
from struct import unpack_from
from typing import Any

from amqp.exceptions import RecoverableConnectionError

#: Bytes asked for at least; a few deliveries. What is left over is copied with each read.
AHEAD = 16 * 1024

#: So many deliveries are handled before the event loop sees to something else.
AT_ONCE = 16

#: Bytes before a frame's payload; one follows it (AMQP 0-9-1, 2.3.5).
_FRAME_HEAD = 7

_UNAVAILABLE = (errno.EAGAIN, errno.EINTR)


def read_ahead(transport: Any) -> None:
    """Have a transport of py-amqp ask its socket for more than the next bytes.

    Only for a connection whose reader goes on until nothing is left (:func:`read_all`), and where an event
    loop waits for the socket, only with :func:`read_left`: what was read ahead no longer makes it readable.

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
    if _handle_some(connection):
        loop.call_soon(read_all, connection, loop)


def read_left(connection: Any) -> bool:
    """Handle what was read and not handled; for each turn of an event loop, before it waits.

    Whoever waits for the broker's answer to a method reads no further than that: deliveries that came with
    it, as when a queue is subscribed to again, would lie here until the next byte, such as a heartbeat's.

    Args:
        connection: Of py-amqp.

    Returns:
        Whether there was anything.

    Raises:
        OSError: It ended just now.
    """
    found = False
    while connection.connected and _has_read_more(connection.transport):
        found = True
        if not _handle_some(connection):
            break
    return found


def _handle_some(connection: Any) -> bool:
    """Handle a few deliveries; returns whether there may be more that nothing else would bring about."""
    try:
        for _ in range(AT_ONCE):
            _handle_one(connection)
            if not _has_read_more(connection.transport):
                return False
    except TimeoutError:
        return False
    except OSError as exc:
        if exc.errno in _UNAVAILABLE:
            return False
        raise
    return True


def _handle_one(connection: Any) -> None:
    """Handle the next delivery or method, as the connection's own ``drain_events``.

    That sets the socket's mode for each frame and sets it back before the frame is handled, for whoever
    writes then; a frame that was read ahead needs no socket.
    """
    handled = False
    while not handled:
        transport = connection.transport
        if _has_frame(transport):
            handled = connection.on_inbound_frame(transport.read_frame())
        else:
            handled = connection.blocking_read(timeout=0)


def _has_frame(transport: Any) -> bool:
    """Whether the next frame was read, all of it."""
    read = transport._read_buffer
    if len(read) < _FRAME_HEAD:
        return False
    _type, _channel, size = unpack_from(">BHI", read)
    return len(read) > _FRAME_HEAD + int(size)


def _has_read_more(transport: Any) -> bool:
    """Whether bytes are here that no longer make the socket readable; TLS keeps the rest of a record too."""
    if transport is None:
        return False
    pending = getattr(transport.sock, "pending", None)
    return bool(transport._read_buffer) or bool(pending and pending())
