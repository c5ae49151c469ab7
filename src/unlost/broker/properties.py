"""Reads the properties of a delivery, several times as fast as py-amqp, and only what is usual.

A task's message has some 25 headers, and py-amqp makes four calls for each. The same names come with every
message, and their values are of few types; whatever else there is, is left to py-amqp.
"""

from __future__ import annotations

from functools import lru_cache
from struct import error as struct_error
from struct import unpack_from
from typing import Any

_TEXT, _TABLE, _ARRAY, _NOTHING, _BOOL = (ord(letter) for letter in "SFAVt")
#: Letter of a number → its format and size (RabbitMQ's errata; py-amqp reads them so).
_NUMBERS = {ord("I"): (">i", 4), ord("l"): (">q", 8), ord("L"): (">q", 8), ord("d"): (">d", 8)}

#: In the order of their flags, from the highest bit on (AMQP 0-9-1, 1.8): name, and how it is read.
_PROPERTIES = (
    (0x8000, "content_type", "text"),
    (0x4000, "content_encoding", "text"),
    (0x2000, "application_headers", "table"),
    (0x1000, "delivery_mode", "octet"),
    (0x0800, "priority", "octet"),
    (0x0400, "correlation_id", "text"),
    (0x0200, "reply_to", "text"),
    (0x0100, "expiration", "text"),
    (0x0080, "message_id", "text"),
)
_KNOWN = sum(flag for flag, _, _ in _PROPERTIES)


class _Unusual(Exception):
    """There is something that is left to py-amqp."""


def read_properties(content: Any, offset: int) -> dict[str, Any] | None:
    """Return the properties that a content header holds, just as py-amqp reads them.

    Args:
        content: A content header's payload.
        offset: Where the properties' flags are.

    Returns:
        Them, or ``None`` if there is something unusual about them: then py-amqp shall read them.
    """
    if type(content) is not bytes:
        return None
    try:
        return _read(content, offset)
    except (_Unusual, UnicodeDecodeError, IndexError, struct_error, RecursionError):
        return None


def _read(content: bytes, offset: int) -> dict[str, Any]:
    flags = int.from_bytes(content[offset : offset + 2], "big")
    if flags & ~_KNOWN:
        raise _Unusual
    offset += 2
    found: dict[str, Any] = {}
    for flag, name, kind in _PROPERTIES:
        if not flags & flag:
            continue
        if kind == "text":
            end = offset + 1 + content[offset]
            found[name] = _text(content[offset + 1 : end])
            offset = end
        elif kind == "octet":
            found[name] = content[offset]
            offset += 1
        else:
            found[name], offset = _read_table(content, offset)
    if offset > len(content):
        # Cut off: py-amqp decides what that means.
        raise _Unusual
    return found


def _read_table(content: bytes, offset: int) -> tuple[dict[Any, Any], int]:
    """Return the table whose length stands at an offset, and the offset behind it."""
    start = offset + 4
    limit = start + int.from_bytes(content[offset:start], "big")
    offset = start
    table: dict[Any, Any] = {}
    while offset < limit:
        end = offset + 1 + content[offset]
        name = _name(content[offset + 1 : end])
        kind = content[end]
        offset = end + 1
        # The two commonest without a call.
        if kind == _TEXT:
            start = offset + 4
            offset = start + int.from_bytes(content[offset:start], "big")
            table[name] = content[start:offset].decode("utf-8", "surrogatepass")
        elif kind == _NOTHING:
            table[name] = None
        else:
            table[name], offset = _read_value(content, offset, kind)
    return table, offset


def _read_value(content: bytes, offset: int, kind: int) -> tuple[Any, int]:
    """Return the value of a kind at an offset, and the offset behind it."""
    if kind in _NUMBERS:
        form, size = _NUMBERS[kind]
        return unpack_from(form, content, offset)[0], offset + size
    if kind == _BOOL:
        return bool(content[offset]), offset + 1
    if kind == _NOTHING:
        return None, offset
    if kind == _TABLE:
        return _read_table(content, offset)
    if kind == _TEXT:
        start = offset + 4
        end = start + int.from_bytes(content[offset:start], "big")
        return content[start:end].decode("utf-8", "surrogatepass"), end
    if kind == _ARRAY:
        return _read_array(content, offset)
    raise _Unusual


def _read_array(content: bytes, offset: int) -> tuple[list[Any], int]:
    """Return the array whose length stands at an offset, and the offset behind it."""
    start = offset + 4
    limit = start + int.from_bytes(content[offset:start], "big")
    offset = start
    values = []
    while offset < limit:
        value, offset = _read_value(content, offset + 1, content[offset])
        values.append(value)
    return values, offset


@lru_cache(maxsize=1024)
def _name(raw: bytes) -> str:
    """Return a header's name. The same come with every message."""
    return _text(raw)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")
