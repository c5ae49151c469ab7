"""A message as AMQP frames, cut in two: the announcement of its content, and the content.

RabbitMQ tells a connection of a memory or disk alarm only when a content header arrives on it
(https://www.rabbitmq.com/docs/connection-blocked: "the first time" it publishes), and what was written
until then is stored once the alarm clears. So a publisher that wants to know first sends the header, and
the body when the broker goes on reading. A message whose body never comes is dropped by the broker.
"""

from __future__ import annotations

from struct import pack
from typing import Any

import amqp
from amqp import spec
from amqp.serialization import dumps

from unlost.core.message import Outgoing

#: Frame type, channel and size, then that many bytes, then one that ends the frame (AMQP 0-9-1, 2.3.5).
_METHOD, _HEADER, _BODY = 1, 2, 3
_OVERHEAD = 8
_END = b"\xce"


class Frames:
    """Renders messages for one channel.

    Args:
        connection: An open connection; its negotiated frame size is used.
        channel_id: The channel that the frames are for.
    """

    def __init__(self, connection: Any, channel_id: int) -> None:
        self._longest = int(connection.frame_max)
        self._channel = channel_id
        self._place: tuple[str, str] | None = None
        self._method = b""

    def of(self, message: Outgoing) -> tuple[bytes, bytes]:
        """Return the frames of a mandatory ``basic.publish``: method and content header, then the body.

        Raises:
            amqp.exceptions.FrameSyntaxError: A header has a type that AMQP does not know. For values that
                are too large, struct.error, ValueError or OverflowError; the last for headers that are
                longer than a frame, because a broker closes the whole connection upon them.
        """
        body = message.raw_body
        properties = message.encoded or encode_properties(message)
        content = pack(">HHQ", spec.Basic.CLASS_ID, 0, len(body)) + properties
        if len(content) + _OVERHEAD > self._longest:
            raise OverflowError(f"headers of more than {self._longest} bytes")
        head = self._method_to(message.exchange, message.routing_key) + self._frame(_HEADER, content)
        longest = self._longest - _OVERHEAD
        if len(body) <= longest:
            return head, self._frame(_BODY, body) if body else b""
        parts = [body[start : start + longest] for start in range(0, len(body), longest)]
        return head, b"".join(self._frame(_BODY, part) for part in parts)

    def _method_to(self, exchange: str, routing_key: str) -> bytes:
        """Return the method frame; the last one is kept, for in a burst it is always the same."""
        if self._place != (exchange, routing_key):
            mandatory, immediate = True, False
            arguments = dumps("Bssbb", (0, exchange, routing_key, mandatory, immediate))
            self._method = self._frame(_METHOD, pack(">HH", *spec.Basic.Publish) + arguments)
            self._place = (exchange, routing_key)
        return self._method

    def _frame(self, kind: int, payload: bytes) -> bytes:
        return pack(">BHI", kind, self._channel, len(payload)) + payload + _END


def encode_properties(message: Outgoing) -> bytes:
    """Return headers and properties as they stand in a content header, by py-amqp's own encoder.

    Raises:
        FrameSyntaxError, struct.error, ValueError, OverflowError: As for :meth:`Frames.of`.
    """
    properties = {name: value for name, value in message.properties.items() if value is not None}
    if isinstance(message.body, str):
        properties.setdefault("content_encoding", "utf-8")
    encoded: bytes = amqp.Message(
        application_headers=dict(message.headers), **properties
    )._serialize_properties()
    return encoded
