"""Messages that no worker should have to see: drawn at random, mutated from real ones, and hand-made.

Every message can be recognised wherever it ends: by its AMQP ``message_id``, by a header, or, where both
are unreadable, by its body.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from struct import pack
from typing import Any

import amqp
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

#: The header that numbers a message.
NUMBER = "x-fuzz"

#: The id of a message that gets one of its own when it is numbered.
NEW = "new"

MIB = 1024 * 1024

JSON: Mapping[str, Any] = {"content_type": "application/json", "content_encoding": "utf-8"}


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A message as it goes to the broker; ``encoded`` are headers and properties that no client makes."""

    body: bytes
    headers: Mapping[str, Any] | None = None
    properties: Mapping[str, Any] = field(default_factory=lambda: JSON)
    encoded: bytes | None = None

    def numbered(self, number: int) -> Raw:
        """Return the message with its number in every place that it has for one."""
        if self.encoded is not None:
            return replace(self, body=f"{number}:".encode() + self.body)
        headers = None if self.headers is None else {**self.headers, NUMBER: number}
        if headers and headers.get("id") == NEW:
            headers["id"] = f"fuzz-{number}"
        return replace(self, headers=headers, properties={**self.properties, "message_id": f"fuzz-{number}"})

    def to_amqp(self) -> amqp.Message:
        """Return what py-amqp publishes."""
        headers = {} if self.headers is None else {"application_headers": dict(self.headers)}
        message = _Encoded(self.body, **headers, **{**self.properties, "delivery_mode": 2})
        message.encoded = self.encoded
        return message


class _Encoded(amqp.Message):
    encoded: bytes | None = None

    def _serialize_properties(self) -> bytes:
        return super()._serialize_properties() if self.encoded is None else self.encoded


def number_of(headers: Mapping[Any, Any], properties: Mapping[str, Any], body: bytes) -> int | None:
    """Return the number of the message that a dead letter was, or ``None`` for one that is not ours."""
    if isinstance(number := headers.get(NUMBER), int):
        return number
    for candidate in (
        str(properties.get("message_id", "")).removeprefix("fuzz-"),
        body[:9].decode("ascii", "replace"),
    ):
        if (digits := candidate.partition(":")[0]).isdecimal():
            return int(digits)
    return None


# --- drawn at random

_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)

_AMQP = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    # RabbitMQ itself refuses the others: Erlang does not have them.
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.binary(max_size=12)
    | st.datetimes(datetime(1970, 1, 2), datetime(9999, 1, 1)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)

#: Tasks of the app that do nothing worse than fail; and names that it does not know.
TASKS = ("t.effect", "t.leaves_trace", "t.parcel", "t.fails", "t.reports_result", "t.permanent")
_NAMES = st.sampled_from(TASKS) | st.sampled_from(["t.nobody_knows", "", "t", "T.EFFECT"]) | _AMQP

_FIELDS = (
    "id", "retries", "replaced_task_nesting", "timelimit", "eta", "expires", "lang", "root_id", "parent_id",
    "group", "group_index", "shadow", "origin", "argsrepr", "kwargsrepr", "ignore_result", "stamped_headers",
    "stamps", "compression", "x-death", "x-delivery-count", "x-acquired-count", "x-opt-whatever",
    "x-unlost-v", "x-unlost-key", "x-unlost-correlation-id", "x-unlost-causation-id", "x-unlost-queue",
    "x-unlost-attempt", "x-unlost-redrives", "x-unlost-first-published", "x-unlost-expires",
    "x-unlost-budget-start", "x-unlost-crashes", "x-unlost-holds", "x-unlost-parks", "x-unlost-run-again",
    "x-unlost-claim", "x-unlost-due", "x-unlost-holder", "x-unlost-raw-body", "x-unlost-death-reason",
    "x-unlost-death-exception", "traceparent", "tracestate", "queue", "exchange", "routing_key",
    "delivery_info", "properties", "hostname", "args", "kwargs", "is_eager", "called_directly", "callbacks",
    "errbacks", "chain", "chord", "correlation_id", "reply_to", "utc", "task", "headers", "taskset",
)  # fmt: skip

_CONTENT_TYPES = st.sampled_from(
    ["application/json", "application/x-python-serialize", "application/data", "text/plain", "pickle",
     "application/x-yaml", "application/x-msgpack", "", "json", "application/json; charset=utf-8"]
) | st.text(max_size=20)  # fmt: skip
_ENCODINGS = st.sampled_from(
    ["utf-8", "binary", "ascii", "us-ascii", "utf-16", "latin-1", "base64", "rot13", "zlib", "idna", "", "\0"]
) | st.text(max_size=20)

_ARGS = st.lists(st.text(max_size=12), min_size=1, max_size=1) | st.lists(_JUNK, max_size=3) | _JUNK
_KWARGS: st.SearchStrategy[Any] = (
    st.just({}) | st.dictionaries(st.text(max_size=8), _JUNK, max_size=3) | _JUNK
)
_LINK = st.fixed_dictionaries({"task": st.just("t.leaves_trace"), "args": st.just(["link"])}) | _JUNK
_EMBED = (
    st.none()
    | st.fixed_dictionaries(
        {},
        optional={
            **{name: st.lists(_LINK, max_size=2) for name in ("callbacks", "errbacks", "chain")},
            "chord": st.none() | _JUNK,
        },
    )
    | _JUNK
)
_TRIPLES = st.tuples(_ARGS, _KWARGS, _EMBED).map(list)
_BODIES = (
    _TRIPLES.map(lambda body: json.dumps(body).encode())
    | _JUNK.map(lambda body: json.dumps(body).encode())
    | _TRIPLES.map(pickle.dumps)
    | st.binary(max_size=60)
)


@st.composite
def _messages(draw: Callable[..., Any]) -> Raw:
    headers: dict[str, Any] | None = {"task": draw(_NAMES), "id": NEW}
    if draw(st.integers(0, 9)) == 0:
        headers.pop(draw(st.sampled_from(["task", "id"])))  # type: ignore[union-attr]
    more = draw(st.dictionaries(st.sampled_from(_FIELDS), _AMQP, max_size=3))
    properties = dict(JSON)
    if draw(st.integers(0, 3)) == 0:
        properties = {"content_type": draw(_CONTENT_TYPES), "content_encoding": draw(_ENCODINGS)}
    if draw(st.integers(0, 19)) == 0:
        headers = None
    return Raw(
        body=draw(_BODIES),
        headers=None if headers is None else {**headers, **more},
        properties=properties,
    )


def drawn(count: int, draw_seed: int) -> list[Raw]:
    """Return messages that hypothesis draws; the same seed draws the same."""
    found: list[Raw] = []

    @seed(draw_seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(_messages())
    def collect(message: Raw) -> None:
        found.append(message)

    collect()
    return found[:count]


# --- mutated


def mutated(real: Sequence[Raw], count: int, rng: random.Random) -> Iterator[Raw]:
    """Yield copies of real messages, each with one to three things wrong."""
    junk = drawn(200, rng.getrandbits(32))
    for _ in range(count):
        message = rng.choice(real)
        headers = {**(message.headers or {}), "id": NEW}
        message = replace(message, headers=headers)
        for _ in range(rng.randint(1, 3)):
            message = rng.choice(_MUTATIONS)(message, rng, rng.choice(junk))
        yield message


def _mutate_body(message: Raw, rng: random.Random, _junk: Raw) -> Raw:
    body = bytearray(message.body)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(body))
        match rng.randrange(5):
            case 0:
                body[at : at + 1] = rng.randbytes(1)
            case 1:
                body[at:at] = rng.randbytes(rng.randint(1, 4))
            case 2:
                del body[at : at + rng.randint(1, 8)]
            case 3:
                del body[at:]
            case _:
                body[at:at] = body[at : at + rng.randint(1, 16)]
    return replace(message, body=bytes(body))


def _mutate_header(message: Raw, rng: random.Random, junk: Raw) -> Raw:
    foreign = [*(junk.headers or {}).values(), None, -1, 2**62, "", "x", b"\xff", [], {}, 1.5, True]
    headers = dict(message.headers or {})
    headers[rng.choice([*headers, *_FIELDS])] = rng.choice(foreign)
    return replace(message, headers=headers)


def _drop_header(message: Raw, rng: random.Random, _junk: Raw) -> Raw:
    headers = dict(message.headers or {})
    if headers:
        headers.pop(rng.choice(list(headers)))
    return replace(message, headers=headers)


def _swap_body(message: Raw, _rng: random.Random, junk: Raw) -> Raw:
    return replace(message, body=junk.body)


def _swap_properties(message: Raw, _rng: random.Random, junk: Raw) -> Raw:
    return replace(message, properties={**message.properties, **junk.properties})


_MUTATIONS = (
    _mutate_body,
    _mutate_body,
    _mutate_header,
    _mutate_header,
    _drop_header,
    _swap_body,
    _swap_properties,
)


# --- hand-made


@cache
def hand_made() -> dict[str, Raw]:
    """Return one message of each kind that is known to have hurt a worker, by what is wrong with it."""
    sound = {"task": "t.leaves_trace", "id": NEW}
    body = b'[["made"], {}, {}]'

    def with_(body: bytes = body, properties: Mapping[str, Any] = JSON, /, **headers: Any) -> Raw:
        return Raw(body=body, headers={**sound, **headers}, properties=properties)

    def encoded(flags: int, *properties: bytes) -> Raw:
        return Raw(body=body, encoded=pack(">H", flags) + b"".join(properties))

    def table(*items: bytes) -> bytes:
        content = b"".join(
            [_item(b"task", b"S", _long(b"t.leaves_trace")), _item(b"id", b"S", _long(b"made")), *items]
        )
        return pack(">I", len(content)) + content

    abyss = b"V"
    for _ in range(9_000):
        abyss = b"F" + pack(">I", len(abyss) + 2) + b"\x01n" + abyss
    nested: Any = 1
    for _ in range(60):
        nested = {"d": nested}
    return {
        "a time limit of text": with_(timelimit=["a", "b"]),
        "a time limit without end": with_(timelimit=[1e300, 1e300]),
        "a time limit of more than an integer": with_(timelimit=[2**62, None]),
        "a time limit below zero": with_(timelimit=[-1, -1]),
        "a time limit of nothing": with_(timelimit=[0, 0]),
        "due after the end of time": with_(**{"x-unlost-due": 2**62}),
        "due before its beginning": with_(**{"x-unlost-due": -(2**62)}),
        "due at a truth": with_(**{"x-unlost-due": True}),
        "expired after the end of time": with_(**{"x-unlost-expires": 2**62}),
        "first published after the end of time": with_(**{"x-unlost-first-published": 2**62}),
        "a budget that began after the end of time": with_(**{"x-unlost-budget-start": 2**62}),
        "an eta that is none": with_(eta="tomorrow"),
        "an eta of a number": with_(eta=12),
        "expires that is none": with_(expires="never"),
        "a newer version": with_(**{"x-unlost-v": 99}),
        "a header that is bytes": with_(**{"x-unlost-queue": b"\xff\xfe"}),
        "a queue that is a list": with_(**{"x-unlost-queue": ["t.work"]}),
        "a correlation id that is a table": with_(**{"x-unlost-correlation-id": {"a": 1}}),
        "an id that is no text": with_(id=b"\xff\xfe"),
        "a task that is bytes": with_(task=b"\xff\xfe"),
        "a claim that is none": with_(**{"x-unlost-claim": "nowhere"}),
        "deeply nested headers": with_(deep=nested),
        "headers of 100 KiB": with_(long="x" * (100 * 1024)),
        "headers that fill a frame": with_(long="x" * (130_800 - 300)),
        "a deeply nested body": with_(b"[" * 200_000),
        "a body of 16 MiB": with_(b'[["' + b"x" * (16 * MIB - 14) + b'"], {}]'),
        "a body of 16 MiB that is none": with_(b"x" * (16 * MIB)),
        "a number of a million digits": with_(b"[[" + b"9" * MIB + b"], {}, {}]"),
        "an empty body": with_(b""),
        "a pickle": with_(
            pickle.dumps([["made"], {}, {}]), {**JSON, "content_type": "application/x-python-serialize"}
        ),
        "a pickle that calls itself JSON": with_(pickle.dumps([["made"], {}, {}])),
        "a bomb of gzip": with_(_bomb(zlib.compressobj()), compression="gzip"),
        "a bomb of bzip2": with_(_bomb(bz2.BZ2Compressor()), compression="bzip2"),
        "a bomb of xz": with_(_bomb(lzma.LZMACompressor(preset=0)), compression="lzma"),
        "a compression that is none": with_(compression="gzip"),
        "a compression that nobody knows": with_(compression="middle-out"),
        "a compression that is no text": with_(compression=["gzip"]),
        "gzip with a file's header": with_(gzip.compress(body), compression="gzip"),
        "compressed and then cut": with_(zlib.compress(body)[:-6], compression="gzip"),
        "a time after the end of time": encoded(0x2000, table(_item(b"t", b"T", b"\xff" * 8))),
        "a key that is no text": encoded(0x2000, table(_item(b"\xff\xfe", b"I", b"\0\0\0\1"))),
        "a decimal of 255 places": encoded(0x2000, table(_item(b"d", b"D", b"\xff\x7f\xff\xff\xff"))),
        "headers nested without end": encoded(0x2000, table(b"\x01n" + abyss)),
        "a content type that is no text": encoded(0xA000, b"\x02\xff\xfe", table()),
        "a message id that is no text": encoded(0x2080, table(), b"\x02\xff\xfe"),
    }


def _item(name: bytes, kind: bytes, value: bytes) -> bytes:
    return pack("B", len(name)) + name + kind + value


def _long(text: bytes) -> bytes:
    return pack(">I", len(text)) + text


def _bomb(compressor: Any) -> bytes:
    """Return what unpacks to 128 MiB, far more than any message may hold."""
    part = b"[" * MIB
    return b"".join([*(compressor.compress(part) for _ in range(128)), compressor.flush()])
