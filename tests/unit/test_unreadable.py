"""Content headers that py-amqp cannot read reach the consumer all the same, with their bytes."""

from __future__ import annotations

from struct import pack
from typing import Any

import pytest
from amqp.method_framing import frame_handler
from amqp.serialization import loads
from amqp.spec import Basic

from tests.support.fuzz import hand_made
from unlost.broker.unreadable import RAW_PROPERTIES, UNREADABLE, problem_of, tolerant_frame_handler

UNREADABLE_KINDS = [
    "a time after the end of time",
    "a content type that is no text",
    "a message id that is no text",
    "headers nested without end",
]


class Connection:
    """What a frame handler needs of one."""

    bytes_recv = 0


def frames(encoded: bytes, body: bytes) -> list[tuple[int, int, bytes]]:
    """Return the frames of a delivery whose properties are encoded so."""
    content = pack(">HHQ", Basic.CLASS_ID, 0, len(body)) + encoded
    found = [(1, 1, pack(">HH", *Basic.Deliver)), (2, 1, content)]
    return [*found, (3, 1, body)] if body else found


def encoded(kind: str) -> bytes:
    """Return the properties of a hand-made message."""
    properties = hand_made()[kind].encoded
    assert properties is not None
    return properties


@pytest.mark.parametrize("body", [b"body", b""])
@pytest.mark.parametrize("kind", UNREADABLE_KINDS)
def test_a_message_with_unreadable_headers_is_received(kind: str, body: bytes) -> None:
    """py-amqp's own handler raises; ours hands the message on with the reason and the raw bytes."""
    received: list[Any] = []
    handle = tolerant_frame_handler(Connection(), lambda *frame: received.append(frame[3]))
    plain = frame_handler(Connection(), lambda *_: None)
    announced, content, *_ = frames(encoded(kind), body)
    plain(announced)
    with pytest.raises((ValueError, ArithmeticError, OSError, RecursionError)):
        plain(content)

    for frame in frames(encoded(kind), body):
        handle(frame)

    [message] = received
    headers = message.properties["application_headers"]
    assert headers[RAW_PROPERTIES] == encoded(kind)
    assert headers[UNREADABLE]
    assert (message.body or b"") == body


def test_the_next_message_is_read_as_ever() -> None:
    """An unreadable message leaves nothing behind on its channel."""
    received: list[Any] = []
    handle = tolerant_frame_handler(Connection(), lambda *frame: received.append(frame[3]))
    sound = hand_made()["a newer version"].to_amqp()
    for properties in (encoded("a time after the end of time"), sound._serialize_properties()):
        for frame in frames(properties, b"body"):
            handle(frame)
    assert received[1].properties["application_headers"]["x-unlost-v"] == 99
    assert received[1].body == b"body"


def test_an_error_of_the_handler_is_no_unreadable_header() -> None:
    """What the consumer itself raises upon a message without a body is passed on."""

    def refuse(*_: Any) -> None:
        raise ValueError("by the consumer")

    handle = tolerant_frame_handler(Connection(), refuse)
    properties = hand_made()["a newer version"].to_amqp()._serialize_properties()
    announced, content = frames(properties, b"")
    handle(announced)
    with pytest.raises(ValueError, match="by the consumer"):
        handle(content)


def test_a_key_that_is_no_text_can_be_read() -> None:
    """py-amqp keeps such a name as bytes: no problem of the frame, but one of whoever looks at the names."""
    properties = encoded("a key that is no text")
    content = pack(">HHQ", Basic.CLASS_ID, 0, 0) + properties
    assert problem_of(content) is None
    assert b"\xff\xfe" in loads("F", properties, 2)[0][0]
