"""A delivery as it came: the body in its raw form too, and unpacked only within a bound.

Kombu unpacks a compressed body while it makes the message, whatever it unpacks to, and keeps only the
result: a letter or a retry made of that would say that it is compressed, and would not be.
"""

from __future__ import annotations

import sys
from typing import Any

from kombu.transport.pyamqp import Message

from unlost.core.unpack import Unsound, unpack

#: A compressed body may unpack to this many times the largest body that may be published.
UNPACKED = 4


def receive_raw(channel: Any, most: int) -> None:
    """Have a channel hand on its deliveries with their raw bodies.

    Args:
        channel: Of kombu; its deliveries are given out as :class:`Message` with a ``raw_body``.
        most: Bytes to which a compressed body may unpack; one that does not is a decode error.
    """
    # py-amqp would decode the body by the message's own word, and some codecs do not lead back.
    channel.auto_decode = False

    class Received(Message):
        """A delivery. ``raw_body`` is what the broker sent, ``body`` what the task is given."""

        def __init__(self, msg: Any, channel: Any = None, **kwargs: Any) -> None:
            # py-amqp gives a message without a body the empty text.
            self.raw_body = msg.body or b""
            problems = []
            if compression := (msg.properties.get("application_headers") or {}).get("compression"):
                try:
                    msg.body = unpack(self.raw_body, compression, most)
                except Unsound:
                    problems = [sys.exc_info()]
            # Kombu unpacks nothing itself once there is an error, and calls ``on_decode_error`` with it.
            self.errors: list[Any] = problems or ([None] if compression else [])
            super().__init__(msg, channel, **kwargs)
            self.errors = problems

    channel.Message = Received


def raw_body_of(message: Any) -> bytes | str:
    """Return a delivery's body as the broker sent it."""
    body: bytes | str = getattr(message, "raw_body", message.body)
    return body
