"""Is a delivery a task message at all? Checked before any of Celery's code relies on it.

Celery kills the worker on a missing id, a body that is no triple or a ``timelimit`` of strings, and acks
a message whose kwargs are no mapping as if it had succeeded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unlost.core import headers as h

_EMBED: Mapping[str, type | tuple[type, ...]] = {
    "callbacks": list,
    "errbacks": list,
    "chain": list,
    "chord": Mapping,
}

#: What a task's body embeds of other tasks; a header of such a name is not Celery's.
EMBEDDED = frozenset(_EMBED)

#: Types of most headers' values, which take few bytes beside a text's own.
_PLAIN = frozenset({str, int, float, bool, type(None)})
_PLAIN_BYTES = 16

#: Headers that are epoch milliseconds.
TIMES = (h.DUE, h.EXPIRES, h.FIRST_PUBLISHED, h.BUDGET_START, h.SIGNED_AT)
#: The end of the year 9999: Python knows no later one.
LATEST_MS = 253_402_300_799_000
#: A year, in seconds; a limit that does not end is none.
LONGEST_LIMIT = 366 * 86_400

#: RabbitMQ's frames hold 128 KiB of headers, and what a retry and a letter add must fit in as well.
MAX_HEADER_BYTES = 96 * 1024
#: How deep headers may be nested; each level takes frames of Python's stack to read and to write.
MAX_DEPTH = 64

#: How deep bodies may be nested: 100 links of links.
MAX_BODY_DEPTH = 300
#: Encodings in which a bracket is the byte that it is in ASCII, and nothing else is.
_ASCII_IS_ASCII = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
_CONTAINERS = (list, tuple, Mapping)

#: Both go into the ledger's key, and the id into the AMQP ``message_id`` (255 bytes) with two numbers.
MAX_NAME_BYTES = 230


def problem_of_headers(headers: Any) -> str | None:
    """Return what is wrong with a message's headers, or ``None``."""
    if not isinstance(headers, Mapping):
        return "the headers are no mapping"
    if (problem := problem_of_names(headers)) is not None:
        return problem
    for name in ("retries", "replaced_task_nesting"):
        if not _is_integer(headers.get(name, 0)):
            return f"header {name!r} is no integer"
    if not isinstance(headers.get("stamped_headers") or [], list):
        return "header 'stamped_headers' is no list"
    if not isinstance(headers.get("stamps") or {}, Mapping):
        return "header 'stamps' is no mapping"
    for name in TIMES:
        moment = headers.get(name)
        if type(moment) is int and not 0 <= moment <= LATEST_MS:
            return f"header {name!r} is no time"
    most = 0
    for name, value in headers.items():
        kind = type(value)
        most += _PLAIN_BYTES + 4 * len(name)
        if kind is str:
            most += 4 * len(value)
        elif kind not in _PLAIN:
            if str(name).startswith(h.PREFIX) and _is_nested(value):
                # Ours are texts and numbers; whoever reads one looks it up or compares it.
                return f"header {name!r} is no text or number"
            most += size_of(value)
    # Measured only where that quick bound does not tell.
    if most > MAX_HEADER_BYTES and size_of(headers) > MAX_HEADER_BYTES:
        return f"the headers are larger than {MAX_HEADER_BYTES} bytes: no retry or letter would fit a frame"
    limits = headers.get("timelimit")
    if limits is not None and not _are_limits(limits):
        return "header 'timelimit' is not a pair of numbers"
    return None


def problem_of_names(headers: Mapping[str, Any]) -> str | None:
    """Return what keeps a message's task name and id out of the ledger, or ``None``."""
    for name in ("task", "id"):
        if not isinstance(headers.get(name), str) or not headers[name]:
            return f"header {name!r} is missing or no text"
        if not _is_short(headers[name]):
            return f"header {name!r} is longer than {MAX_NAME_BYTES} bytes or not UTF-8"
        if "\0" in headers[name]:
            return f"header {name!r} holds the character NUL, which PostgreSQL cannot store"
    return None


def problem_of_body(payload: Any) -> str | None:
    """Return what is wrong with a decoded body, or ``None``; the shape is Celery's task protocol 2."""
    if not isinstance(payload, list | tuple) or len(payload) != 3:
        return "the body is not [args, kwargs, embed]"
    args, kwargs, embed = payload
    if not isinstance(args, list | tuple):
        return "args are no list"
    if not isinstance(kwargs, Mapping):
        return "kwargs are no mapping"
    if embed is not None and not isinstance(embed, Mapping):
        return "embed is no mapping"
    return _problem_of_embed(embed or {})


def problem_of_depth(payload: Any, raw: bytes | str, encoding: object) -> str | None:
    """Return what is wrong with how deep a decoded body is nested, or ``None``.

    Pickle, which takes it to a process of the pool, gives up at some 470 levels, in the middle of what the
    pool does for other messages.

    Args:
        payload: Decoded.
        raw: As it was decoded from.
        encoding: Of ``raw``.
    """
    # No deeper than it has brackets, which are counted in a moment.
    square, curly = ("[", "{") if isinstance(raw, str) else (b"[", b"{")
    brackets = raw.count(square) + raw.count(curly)  # type: ignore[arg-type]
    if brackets <= MAX_BODY_DEPTH and str(encoding).lower() in _ASCII_IS_ASCII:
        return None
    level = [payload]
    for _ in range(MAX_BODY_DEPTH):
        level = [inner for outer in level for inner in _values(outer) if isinstance(inner, _CONTAINERS)]
        if not level:
            return None
    return f"the body is nested in more than {MAX_BODY_DEPTH} levels"


def _values(outer: Any) -> Iterable[Any]:
    return outer.values() if isinstance(outer, Mapping) else outer


def _problem_of_embed(embed: Mapping[str, Any]) -> str | None:
    """Celery merges embed into the request, so a foreign key there would replace what it relies on."""
    for name, value in embed.items():
        if name not in _EMBED:
            return f"embed has an unknown key {name!r}"
        if value is not None and not isinstance(value, _EMBED[name]):
            return f"embed[{name!r}] has the wrong type"
        if not all(_is_signature(each) for each in (value if isinstance(value, list) else [value])):
            return f"embed[{name!r}] holds what is no signature"
    return None


def _is_signature(value: Any) -> bool:
    """Whether Celery can send it: what it cannot, it would fail at again and again once its task is done."""
    if value is None:
        return True
    if not isinstance(value, Mapping) or not isinstance(value.get("task"), str):
        return False
    parts = (value.get("args"), list | tuple), (value.get("kwargs"), Mapping), (value.get("options"), Mapping)
    return all(isinstance(part, kind) for part, kind in parts)


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _is_short(text: str) -> bool:
    if text.isascii():
        return len(text) <= MAX_NAME_BYTES
    try:
        return len(text.encode()) <= MAX_NAME_BYTES
    except UnicodeEncodeError:
        # amqp decodes with "surrogatepass"; no database takes what comes of that.
        return False


def _is_integer(value: Any) -> bool:
    # A bool is an int, too.
    return type(value) is int


def _are_limits(limits: Any) -> bool:
    return (
        isinstance(limits, list | tuple)
        and len(limits) == 2
        and all(limit is None or _is_limit(limit) for limit in limits)
    )


def _is_limit(limit: Any) -> bool:
    # Zero is none for Celery; one below it has passed before the task starts.
    return (_is_integer(limit) or isinstance(limit, float)) and 0 <= limit <= LONGEST_LIMIT


def size_of(value: Any, depth: int = 0) -> int:
    """Return how many bytes a header's value takes in a frame, or a little more."""
    if value is None:
        return 9
    if isinstance(value, str):
        return 5 + len(value.encode(errors="surrogatepass"))
    if isinstance(value, bytes | bytearray | memoryview):
        return 5 + len(value)
    if depth > MAX_DEPTH:
        return MAX_HEADER_BYTES
    if isinstance(value, list | tuple):
        return 5 + sum(size_of(each, depth + 1) for each in value)
    if isinstance(value, Mapping):
        return 5 + sum(size_of(name) + size_of(each, depth + 1) for name, each in value.items())
    return 9
