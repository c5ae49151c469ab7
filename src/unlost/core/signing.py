"""Message signatures: who may publish to a worker is who has the key, not who reaches the broker.

A signature is HMAC-SHA256 (RFC 2104) over the body as it travels, all headers, and the properties that say
how the body is read and where a result goes. All headers, because most of them decide something: which task
runs, under which id and key, as which attempt and redrive, when, for how long, for whom (an application's
own headers). Left out is what changes on the way without anybody's doing: what brokers, their plugins and
shovels add, priority, delivery mode, exchange and routing key. An operator's notes on a parked letter decide
nothing, so parking needs no key.

*Replays.* A copy of a signed message is the same message: it has the same task id, attempt and redrive
number, and none of them can be changed without the key. The ledger absorbs it, for as long as it remembers.
Without a ledger only ``max_age`` bounds for how long a copy can be played back.

*Copies of our own.* A retry, a held copy, a redrive has other headers, so whoever makes one signs it anew: a
worker after it has verified the delivery, a redrive after it has verified the letter. What could not be
verified is never signed: its letter keeps the signature that it came with.

*Age* counts from when a message was signed, or is due if that is later, so that a delay of a year does not
age it; a retry begins anew. Where a message is only passed on as it is (parked, sent to its task's own
queue) it keeps its time. A backlog does age it, for a message that somebody has kept back looks the same:
``max_age`` must be longer than the longest backlog that shall be worked off by itself. What the ledger knows
is never too old: it has been seen in time, and the ledger says what becomes of it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from unlost.core import headers as h
from unlost.core.clock import epoch_ms, from_epoch_ms, moment_of
from unlost.core.message import Outgoing

#: Reasons of letters.
UNSIGNED = "unsigned"
BAD_SIGNATURE = "bad-signature"
EXPIRED_SIGNATURE = "expired-signature"
UNSIGNABLE = "unsignable"

#: Says what is signed, and how; goes into it, so that another scheme's signature is never one of this.
SCHEME = "v1"

_PROPERTIES = ("content_type", "content_encoding", "reply_to", "correlation_id")

#: Types whose values JSON renders alike before and after their way through AMQP.
_PLAIN = frozenset({str, int, float, bool, type(None)})


@dataclass(frozen=True, slots=True)
class Flaw:
    """Why a message is not believed: the reason of its letter, and a text that holds nothing secret."""

    reason: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """Signs and verifies; a pure value that holds the secrets and shows them to nobody.

    Attributes:
        keys: Secrets by key id; each of them verifies.
        sign_with: The id of the one that signs.
        require: Whether a message without a signature is refused.
        max_age: How long after it was signed, or due, a message may be seen for the first time; ``None`` for
            no bound.
        leeway: How far the clocks of those who sign and verify may be apart; added to ``max_age``.
    """

    keys: Mapping[str, bytes] = field(repr=False)
    sign_with: str
    require: bool = True
    max_age: timedelta | None = None
    leeway: timedelta = timedelta(0)

    def sign(self, message: Outgoing, at: datetime) -> Outgoing:
        """Return the message with a signature; one that it has is replaced.

        Args:
            message: As it would travel.
            at: Since when it counts as signed.

        Raises:
            LookupError, ValueError: Its text cannot be encoded as ``content_encoding`` says.
        """
        body = message.raw_body
        properties = message.properties
        if isinstance(message.body, str):
            properties = {**properties, "content_encoding": properties.get("content_encoding") or "utf-8"}
        headers = {**h.unsealed(message.headers), **self.marks(epoch_ms(at))}
        headers[h.SIGNATURE] = self.signature_of(head_of(headers, properties), body)
        return replace(message, headers=headers, properties=properties)

    def marks(self, at_ms: int) -> dict[str, Any]:
        """Return the headers that say who signs and since when; they are signed, too.

        Args:
            at_ms: Since when, in epoch milliseconds.
        """
        return {h.KEY_ID: self.sign_with, h.SIGNED_AT: at_ms}

    def signature_of(self, head: bytes, body: bytes) -> str:
        """Return the signature of a message.

        Args:
            head: What :func:`head_of` makes of it, :meth:`marks` included.
            body: As it travels.
        """
        return _digest(self.keys[self.sign_with], head, body)

    def flaw_of(self, headers: Mapping[str, Any], properties: Mapping[str, Any], body: bytes) -> Flaw | None:
        """Return why a message is not to be believed, or ``None``; its age is :meth:`is_expired`'s.

        Args:
            headers: As they came.
            properties: AMQP properties.
            body: As the broker sent it, before anything was unpacked or decoded.
        """
        signature = headers.get(h.SIGNATURE)
        if signature is None:
            return Flaw(UNSIGNED, "it has no signature, and signing.require is set") if self.require else None
        named = headers.get(h.KEY_ID)
        key = self.keys.get(named) if isinstance(named, str) else None
        if key is None:
            known = ", ".join(sorted(self.keys))
            return Flaw(BAD_SIGNATURE, f"it names key {str(named)[:64]!r}, and this process has {known}")
        made = _signature(key, headers, properties, body)
        if not isinstance(signature, str) or not _is_same(signature, made):
            return Flaw(BAD_SIGNATURE, f"its signature is not the one that key {named!r} makes of it")
        return None

    def is_expired(self, headers: Mapping[str, Any], now: datetime) -> bool:
        """Whether a message was signed, and due, too long ago to be believed without the ledger's word."""
        signed_at = signed_at_of(headers)
        if self.max_age is None or signed_at is None:
            return False
        due = headers.get(h.DUE)
        since = max(signed_at, from_epoch_ms(due)) if isinstance(due, int) else signed_at
        return now - since > self.max_age + self.leeway

    def describe_age(self) -> str:
        """Return the bound in words, for a letter."""
        return f"it was signed, or due, more than max_age={self.max_age} ago, and this worker has not seen it"


def signed_at_of(headers: Mapping[str, Any]) -> datetime | None:
    """Return since when a message counts as signed, or ``None`` if it does not say."""
    value = headers.get(h.SIGNED_AT)
    return from_epoch_ms(value) if isinstance(value, int) else None


def _is_same(given: str, made: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode(errors="surrogatepass"), made.encode())


def _signature(key: bytes, headers: Mapping[str, Any], properties: Mapping[str, Any], body: bytes) -> str:
    return _digest(key, head_of(headers, properties), body)


def head_of(headers: Mapping[str, Any], properties: Mapping[str, Any]) -> bytes:
    """Return what is signed of a message in front of its body."""
    said = [
        SCHEME,
        {str(name): _canonical(value) for name, value in h.sealed(headers).items()},
        [str(properties.get(name) or "") for name in _PROPERTIES],
    ]
    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()


def _digest(key: bytes, head: bytes, body: bytes) -> str:
    # JSON escapes line feeds, so the one before the body is the first.
    made = hmac.new(key, head + b"\n", hashlib.sha256)
    made.update(body)
    return made.hexdigest()


def _canonical(value: Any) -> Any:
    """Return a header's value in the one form that it has before and after its way through AMQP.

    Two values have one form only if AMQP makes one of them: bytes that are UTF-8 arrive as text, times in
    whole seconds, decimals without trailing zeros.
    """
    if type(value) in _PLAIN:
        return value
    match value:
        case str():
            return str(value)
        case Mapping():
            return {"map": {str(name): _canonical(each) for name, each in value.items()}}
        case list() | tuple():
            return [_canonical(each) for each in value]
        case bytes() | bytearray() | memoryview():
            return _text_or_hex(bytes(value))
        case datetime():
            return {"time": int(moment_of(value).timestamp())}
        case Decimal():
            return {"decimal": str(value.normalize())}
        case _:
            return {type(value).__name__: str(value)}


def _text_or_hex(value: bytes) -> Any:
    try:
        return value.decode(errors="surrogatepass")
    except UnicodeDecodeError:
        return {"bytes": value.hex()}
