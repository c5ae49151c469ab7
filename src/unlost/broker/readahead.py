"""Reads from a connection what is there, instead of three times for each frame.

py-amqp asks the socket for a frame's head, body and end one by one, nine system calls for a delivery. What
it is given too much it keeps for the next read, so it may be given all there is.
"""

from __future__ import annotations

from typing import Any

#: Bytes asked for at least; a few deliveries. What is left over is copied with each read.
AHEAD = 16 * 1024


def read_ahead(transport: Any) -> None:
    """Have a transport of py-amqp ask its socket for more than the next bytes.

    Only for a connection whose reader goes on until nothing is left, as kombu's on an event loop does: what
    was read ahead no longer makes the socket readable.

    Args:
        transport: Connected, plain or with TLS.
    """
    receive = transport._quick_recv

    def receive_more(least: int) -> bytes:
        received: bytes = receive(max(least, AHEAD))
        return received

    transport._quick_recv = receive_more
