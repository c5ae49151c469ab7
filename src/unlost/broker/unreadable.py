"""Reads frames of messages whose headers or properties py-amqp cannot read.

A time after the year 9999, tables nested a thousand deep, a content type that is no UTF-8: RabbitMQ stores
and delivers them, and py-amqp raises while it reads the frame. That ends the worker, and each next one that
gets the message. Here the consumer gets such a message with one header that says why and a second one with
the bytes of all the others, so that it can be dead-lettered as it came.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import error as struct_error
from typing import Any

import amqp
from amqp.exceptions import FrameSyntaxError
from amqp.method_framing import frame_handler
from amqp.serialization import decode_properties_basic

#: Why a message's headers could not be read.
UNREADABLE = "x-unlost-unreadable"
#: They and all properties, as they came: flags and values (AMQP 0-9-1, 2.3.5.2).
RAW_PROPERTIES = "x-unlost-raw-properties"

#: Class, weight and size of the body, ahead of the properties in a content header.
_PREFIX = 12
_CONTENT_HEADER = 2
_UNREADABLE = (
    FrameSyntaxError,
    struct_error,
    ValueError,
    ArithmeticError,
    RecursionError,
    IndexError,
    TypeError,
    OSError,
)

Frame = tuple[int, int, Any]


def tolerant_frame_handler(connection: Any, callback: Callable[..., None]) -> Callable[[Frame], bool]:
    """Return py-amqp's handler of frames, behind which no content header is unreadable.

    Given as ``frame_handler`` among a connection's transport options.
    """
    on_frame = frame_handler(connection, callback)

    def on_any_frame(frame: Frame) -> bool:
        try:
            read: bool = on_frame(frame)
        except _UNREADABLE:
            kind, channel, content = frame
            # Without a body the message is handed on in the same call: its handler may have raised.
            problem = problem_of(content) if kind == _CONTENT_HEADER else None
            if problem is None:
                raise
            read = on_frame((kind, channel, readable(content, problem)))
        return read

    return on_any_frame


def problem_of(content: Any) -> str | None:
    """Return why the properties in a content header cannot be read, or ``None`` if they can."""
    try:
        decode_properties_basic(content, _PREFIX)
    except _UNREADABLE as exc:
        return f"{type(exc).__name__}: {exc}"
    return None


def readable(content: Any, problem: str) -> bytes:
    """Return a content header for the same body whose only properties are two headers of ours."""
    raw = bytes(content[_PREFIX:])
    headers = {UNREADABLE: problem, RAW_PROPERTIES: raw}
    properties: bytes = amqp.Message(application_headers=headers)._serialize_properties()
    return bytes(content[:_PREFIX]) + properties
