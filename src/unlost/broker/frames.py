"""A message as AMQP frames, cut in two: the announcement of its content, and the content.

RabbitMQ tells a connection of a memory or disk alarm only when a content header arrives on it
(https://www.rabbitmq.com/docs/connection-blocked: "the first time" it publishes), and what was written
until then is stored once the alarm clears. So a publisher that wants to know first sends the header, and
the body when the broker goes on reading. A message whose body never comes is dropped by the broker.
"""

from __future__ import annotations

from typing import Any

import amqp
from amqp import spec
from amqp.method_framing import frame_writer
from amqp.serialization import dumps

#: Frame type, channel and size, then that many bytes, then one that ends the frame (AMQP 0-9-1, 2.3.5).
_HEADER = 7
_END = 1


class Frames:
    """Renders messages for one connection with py-amqp's own writer.

    Args:
        connection: An open connection; its negotiated frame size is used.
    """

    def __init__(self, connection: Any) -> None:
        self._bytes = bytearray()
        self._longest = connection.frame_max
        self._render = frame_writer(connection, self)

    def write(self, data: Any) -> None:
        """Take what py-amqp would write to a socket."""
        self._bytes += data

    def of(self, channel_id: int, exchange: str, routing_key: str, content: amqp.Message) -> tuple[Any, Any]:
        """Return the frames of a mandatory ``basic.publish``: method and content header, then the body.

        Raises:
            amqp.exceptions.FrameSyntaxError: A header has a type that AMQP does not know. For values that
                are too large, struct.error, ValueError or OverflowError; the last for headers that are
                longer than a frame, because a broker closes the whole connection upon them.
        """
        self._bytes = bytearray()
        arguments = dumps("Bssbb", (0, exchange, routing_key, True, False))
        self._render(1, channel_id, spec.Basic.Publish, arguments, content)
        content_header = self._end_of_frame(0)
        cut = self._end_of_frame(content_header)
        if cut - content_header > self._longest:
            raise OverflowError(f"headers of more than {self._longest} bytes")
        return self._bytes[:cut], self._bytes[cut:]

    def _end_of_frame(self, start: int) -> int:
        size = int.from_bytes(self._bytes[start + 3 : start + _HEADER], "big")
        return start + _HEADER + size + _END
