"""A message as it goes over the wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A rendered message and where it goes.

    ``properties`` are AMQP basic properties but for the headers, spelled as in the specification
    (``content_type``, ``priority``, ``message_id``, ...).
    """

    exchange: str
    routing_key: str
    body: bytes | str
    headers: Mapping[str, Any] = field(default_factory=dict)
    properties: Mapping[str, Any] = field(default_factory=dict)
    #: Headers and properties as AMQP encodes them, where somebody has done so. Not part of the value, and
    #: gone from every changed copy: ``replace`` does not carry it over.
    encoded: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def message_id(self) -> str:
        """Return the AMQP message id, or an empty string."""
        return str(self.properties.get("message_id") or "")

    @property
    def raw_body(self) -> bytes:
        """Return the body as the bytes that travel.

        Raises:
            LookupError, ValueError: ``content_encoding`` is none, or has no form for a text's characters.
        """
        if isinstance(self.body, str):
            return self.body.encode(self.properties.get("content_encoding") or "utf-8")
        return self.body

    def with_encoded(self, encoded: bytes) -> Outgoing:
        """Return this very message, with its headers and properties encoded."""
        object.__setattr__(self, "encoded", encoded)
        return self

    def to(self, exchange: str, routing_key: str) -> Outgoing:
        """Return the same message for another destination."""
        return replace(self, exchange=exchange, routing_key=routing_key)

    def describe(self) -> str:
        """Return a line that names the message without its payload."""
        task = self.headers.get("task", "message")
        return f"{task}[{self.message_id or '?'}] to exchange {self.exchange!r} with key {self.routing_key!r}"
