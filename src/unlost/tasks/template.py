"""A message made once and filled in many times: what ``apply_async`` would send, without its way there.

Celery takes about 140 µs to make and send one message, most of it for what is the same in all of them. The
first message of a bulk is made by ``apply_async`` itself; a template takes everything from it but task id,
correlation id, time and arguments. Where anything else could differ from call to call, there is none.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from struct import pack
from typing import Any

from celery import Celery, Task, signals
from kombu.exceptions import EncodeError
from kombu.serialization import dumps, registry
from kombu.utils.json import JSONEncoder
from kombu.utils.json import dumps as kombu_dumps

from unlost.broker.errors import NotSerialisable
from unlost.broker.frames import encode_properties
from unlost.core import headers as h
from unlost.core.ids import Generation, MessageId, amqp_message_id
from unlost.core.message import Outgoing
from unlost.core.signing import Seal, head_of

#: Options that are the same for every message of a bulk.
_CONSTANT = frozenset(
    {"queue", "exchange", "routing_key", "priority", "headers", "shadow", "time_limit", "soft_time_limit"}
    | {"retry", "retry_policy", "argsrepr", "kwargsrepr", "ignore_result"}
)

#: Attributes of a task that change every message, as far as they are set.
_VARIABLE = ("expires", "compression")


def can_fill_in(app: Celery, task: Any, base: type[Task], options: Mapping[str, Any]) -> bool:
    """Whether messages of this call differ in ids, times and arguments only.

    Args:
        app: The task's app.
        task: What is published.
        base: The class whose ``apply_async`` is ours.
        options: What ``apply_async`` is given besides the arguments.
    """
    kind = type(task)
    return (
        set(options) <= _CONSTANT
        and kind.apply_async is base.apply_async
        and _is_celerys(base.__dict__["apply_async"])
        and _is_celerys(Task.__dict__["apply_async"])
        and _is_celerys(Celery.__dict__["send_task"])
        and kind.shadow_name is Task.shadow_name
        # A header of each message names its key.
        and getattr(task, "key", None) is None
        and getattr(task, "__self__", None) is None
        and getattr(task, "_dump_pydantic_arguments", None) is None
        and not any(getattr(task, name, None) for name in _VARIABLE)
        and bool(options.get("ignore_result", task.ignore_result))
        and not _differs_by_message(app)
    )


def _is_celerys(function: Any) -> bool:
    """Whether a function is the one it was: tracing libraries put their own in its place."""
    return inspect.isfunction(function) and not hasattr(function, "__wrapped__")


def _differs_by_message(app: Celery) -> bool:
    conf = app.conf
    listening = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)
    return bool(
        conf.task_routes
        or conf.task_compression
        or conf.task_send_sent_event
        or conf.task_always_eager
        or any(signal.receivers for signal in listening)
    )


class MessageTemplate:
    """Fills in messages like a given one.

    Args:
        sample: A message that ``apply_async`` made.
        new_correlation: Whether each message begins a correlation of its own.
        seal: Signs each message; ``None`` leaves that to others.
    """

    def __init__(self, sample: Outgoing, *, new_correlation: bool, seal: Seal | None = None) -> None:
        self._sample = sample
        self._seal = seal
        args, kwargs, self._embed = json.loads(sample.body)
        own = sample.headers["id"]
        self._ids = [name for name, value in sample.headers.items() if value == own]
        self._id_properties = [name for name, value in sample.properties.items() if value == own]
        nesting = sample.headers.get("replaced_task_nesting") or 0
        # What follows the task id in a message id.
        self._life = amqp_message_id(MessageId(sample.headers["task"], "", nesting), Generation(0, 1))
        self._new_correlation = new_correlation
        self._encoder = JSONEncoder()
        self._rest = f", {self._encoder.encode(self._embed)}]"
        self._splices = _is_kombus_json() and self._spliced(args, kwargs) == sample.body
        self._pattern, self._head = self._encode()

    def fill(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outgoing:
        """Return a message with these arguments and ids of its own.

        Raises:
            NotSerialisable: JSON has no form for an argument.
        """
        task_id, correlation = _random_ids()
        if not self._new_correlation:
            correlation = ""
        now = int(time.time() * 1000)
        message = self._filled(self._body(args, kwargs), task_id, correlation, now)
        values = [task_id.encode(), correlation.encode(), pack(">q", now), b"%d" % now]
        if self._seal is not None:
            signature = self._seal.signature_of(self._head.filled(values), message.raw_body)
            # Its own dictionary, made just now.
            message.headers[h.SIGNATURE] = signature  # type: ignore[index]
            values.append(signature.encode())
        return message.with_encoded(self._pattern.filled(values))

    def _body(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes | str:
        """Return what kombu makes of a task's body; of what is the same in all, only once."""
        if self._splices:
            try:
                return self._spliced(args, kwargs)
            except Exception as exc:
                raise NotSerialisable(str(self._sample.headers["task"]), exc) from exc
        try:
            _, _, body = dumps((args, kwargs, self._embed), serializer="json")
        except EncodeError as exc:
            raise NotSerialisable(str(self._sample.headers["task"]), exc) from exc
        made: bytes | str = body
        return made

    def _spliced(self, args: Any, kwargs: Any) -> str:
        both: str = self._encoder.encode((args, kwargs))
        return both[:-1] + self._rest

    def _filled(self, body: bytes | str, task_id: str, correlation: str, now: int) -> Outgoing:
        sample = self._sample
        headers = {**sample.headers}
        headers[h.FIRST_PUBLISHED] = now
        for name in self._ids:
            headers[name] = task_id
        if correlation:
            headers[h.CORRELATION_ID] = correlation
        if self._seal is not None:
            headers.update(self._seal.marks(now))
        properties = {**sample.properties}
        for name in self._id_properties:
            properties[name] = task_id
        properties["message_id"] = task_id + self._life
        return Outgoing(
            exchange=sample.exchange,
            routing_key=sample.routing_key,
            body=body,
            headers=headers,
            properties=properties,
        )

    def _encode(self) -> tuple[Pattern, Pattern]:
        """Encode a message of unmistakable values; return it with holes, and what is signed of it."""
        task_id, correlation = str(uuid.uuid4()), uuid.uuid4().hex
        # As long as any time to come: more than 32 bits make AMQP's "L".
        now = (1 << 62) | (uuid.uuid4().int >> 68)
        signature = uuid.uuid4().hex + uuid.uuid4().hex
        message = self._filled(self._sample.body, task_id, correlation if self._new_correlation else "", now)
        marks = [task_id.encode(), correlation.encode(), pack(">q", now), b"%d" % now, signature.encode()]
        head = Pattern.of(head_of(message.headers, _as_encoded(message)), marks)
        if self._seal is not None:
            message = replace(message, headers={**message.headers, h.SIGNATURE: signature})
        return Pattern.of(encode_properties(message), marks), head


@dataclass(frozen=True, slots=True)
class Pattern:
    """Bytes with holes in them.

    Attributes:
        text: What is around the holes, for ``%``.
        order: Which value goes into each.
    """

    text: bytes
    order: Sequence[int]

    @classmethod
    def of(cls, filled: bytes, marks: Sequence[bytes]) -> Pattern:
        """Return bytes with a hole wherever one of the marks stands."""
        pattern = b"(" + b"|".join(re.escape(mark) for mark in marks) + b")"
        # Every second part is a mark.
        parts = re.split(pattern, filled)
        order = [marks.index(mark) for mark in parts[1::2]]
        return cls(b"%b".join(part.replace(b"%", b"%%") for part in parts[::2]), order)

    def filled(self, values: Sequence[bytes]) -> bytes:
        """Return them with values in the holes."""
        return self.text % tuple([values[which] for which in self.order])


def _as_encoded(message: Outgoing) -> dict[str, Any]:
    """Return the properties as they travel: a text without an encoding goes as UTF-8."""
    encoding = message.properties.get("content_encoding") or (
        "utf-8" if isinstance(message.body, str) else None
    )
    return {**message.properties, "content_encoding": encoding}


def _is_kombus_json() -> bool:
    """Whether nobody has put another serializer in the place of kombu's JSON."""
    encoder = registry._encoders.get("json")
    return encoder is not None and encoder.encoder is kombu_dumps


def _random_ids() -> tuple[str, str]:
    """Return a task id in the form of a UUID of version 4, and a correlation id, as 32 hexadecimal digits.

    ``uuid.uuid4()`` does the same by way of an integer, for three times as long.
    """
    digits = os.urandom(32).hex()
    variant = _VARIANTS[digits[16]]
    task_id = f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:32]}"
    return task_id, digits[32:]


#: The digit that says "RFC 9562", by a random one: its two upper bits are 10.
_VARIANTS = {f"{digit:x}": f"{8 | digit & 3:x}" for digit in range(16)}
