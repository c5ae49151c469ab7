"""The claim check: a large body is kept in a store, and the message carries a reference and a checksum.

(Hohpe and Woolf, Enterprise Integration Patterns, "Claim Check".) The reference is the body of the message,
and no task message by itself: a worker that knows nothing of claims dead-letters it as malformed, instead of
running the task without its arguments.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import quote, unquote

from unlost.core import headers as h
from unlost.core.clock import from_epoch_ms
from unlost.core.ids import MessageId
from unlost.core.message import Outgoing
from unlost.errors import ClaimLost

_FIELD = "claim"
_WAITING = "waiting"

#: How Celery's JSON ends of a task that embeds nothing.
_NOBODY = b', {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'

#: Of what a task's body embeds, who is told when it does not succeed.
_DEPENDENTS = ("errbacks", "chord")
_JSON = {"content_type": "application/json", "content_encoding": "utf-8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A reference to a body in a store.

    Attributes:
        key: Where it is; begins with the day until which it is kept.
        sha256: Its checksum, in hexadecimal.
        size: Its length in bytes.
        content_type: How it is serialized.
        content_encoding: Its character set, or ``binary``.
        compression: How it is compressed; empty if it is not.
    """

    key: str
    sha256: str
    size: int
    content_type: str
    content_encoding: str
    compression: str = ""

    def check(self, body: bytes) -> bytes:
        """Return the body if it is the one that was stored.

        Raises:
            ClaimLost: It is not.
        """
        if len(body) != self.size or hashlib.sha256(body).hexdigest() != self.sha256:
            raise ClaimLost(
                f"the stored payload {self.key!r} is not the one that was stored: its checksum differs"
            )
        return body


def body_of(message: Outgoing) -> bytes:
    """Return a message's body as the bytes that travel."""
    return message.body.encode() if isinstance(message.body, str) else bytes(message.body)


def is_claim(message: Outgoing) -> bool:
    """Whether the message's body is in a store already."""
    return h.CLAIM in message.headers


def claim_of(message: Outgoing, now: datetime, retention: timedelta) -> Claim:
    """Return the claim of a message's body; its key says whose it is and until when it is kept.

    The retention counts from when the message may run.
    """
    headers = message.headers
    due = headers.get(h.DUE)
    start = max(now, from_epoch_ms(due)) if isinstance(due, int) else now
    body = body_of(message)
    return Claim(
        key=key_of(h.message_id_of(headers), (start + retention).astimezone(UTC).date()),
        sha256=hashlib.sha256(body).hexdigest(),
        size=len(body),
        content_type=str(message.properties.get("content_type") or ""),
        content_encoding=str(message.properties.get("content_encoding") or ""),
        compression=str(headers.get("compression") or ""),
    )


def checked_in(message: Outgoing, claim: Claim, unpacked: bytes, room: int) -> Outgoing:
    """Return the message with the claim in place of its body.

    Args:
        message: With its body.
        claim: Of that.
        unpacked: The body, not compressed.
        room: Bytes that errbacks and chord may take: they travel, for when the payload is gone.
    """
    headers = {name: value for name, value in message.headers.items() if name != "compression"}
    waiting = _waiting_in(unpacked)
    body: dict[str, Any] = {_FIELD: asdict(claim)}
    if waiting and len(json.dumps(waiting)) <= room:
        body[_WAITING] = waiting
    return replace(
        message,
        body=json.dumps(body),
        headers={**headers, h.CLAIM: 1},
        properties={**message.properties, **_JSON},
    )


def _waiting_in(body: bytes) -> dict[str, Any]:
    """Return errbacks and chord of a task's body; most are not read through, for they embed nothing."""
    if body.endswith(_NOBODY):
        return {}
    try:
        _args, _kwargs, embed = json.loads(body)
        return {name: embed[name] for name in _DEPENDENTS if embed.get(name)}
    except (AttributeError, TypeError, ValueError):
        return {}


def waiting_of(body: bytes | str) -> Mapping[str, Any]:
    """Return what a delivered claim says of errbacks and chord, as a task's body would embed it.

    Nothing where they had no room, in what an older release published, and where it is no claim.
    """
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    waiting = payload.get(_WAITING) if isinstance(payload, Mapping) else None
    if not isinstance(waiting, Mapping):
        return {}
    return {name: waiting[name] for name in _DEPENDENTS if name in waiting}


def read_claim(payload: Any) -> Claim:
    """Return the claim that a delivered body holds.

    Raises:
        ClaimLost: It holds none.
    """
    fields = payload.get(_FIELD) if isinstance(payload, Mapping) else None
    try:
        claim = Claim(**fields)  # type: ignore[arg-type]
    except TypeError as exc:
        raise ClaimLost(f"the message says that its payload is in a store, and not where: {exc}") from exc
    if parse_key(claim.key) is None:
        # Whoever can publish can name any key: it must not lead out of the store.
        raise ClaimLost(f"the message names {str(claim.key)[:100]!r}, which is no key of a payload")
    return claim


def key_of(message: MessageId, until: date) -> str:
    """Return a new key: day, task, and id with nesting and a nonce; each a name that file systems take."""
    name = f"{quote(message.id, safe='')},{message.nesting},{secrets.token_hex(4)}"
    return f"{until.isoformat()}/{quote(message.task, safe='')}/{name}"


def parse_key(key: str) -> tuple[date, MessageId] | None:
    """Return until when a key's payload is kept, and whose it is; ``None`` if it is no key of ours."""
    try:
        day, task, name = key.split("/")
        quoted, nesting, _nonce = name.split(",")
        if task in (".", ".."):
            return None
        return date.fromisoformat(day), MessageId(unquote(task), unquote(quoted), int(nesting))
    except (AttributeError, ValueError):
        return None
