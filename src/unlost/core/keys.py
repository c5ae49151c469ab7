"""Idempotency keys: what makes two messages of a task the same piece of work.

A *key record* stands beside the ledger's rows under an identity of its own; whoever runs a message holds the
record of its key too, under the same holder, and both are done together. A second message with the same key
finds it done and gets the recorded result. The record also keeps a fingerprint of the payload: the same key
with another payload is a mistake of the caller, and is said, as payment APIs do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from unlost.core.ids import MessageId
from unlost.core.settlement import Row

#: Longer keys are kept as their digest; shorter ones can be read by an operator.
_READABLE = 200

PREFIX = "key:"


def canonical(value: Any) -> str:
    """Return the text that equal values have in common: JSON, names sorted, ASCII.

    Raises:
        TypeError: It is no JSON value.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def key_id(space: str, value: Any) -> MessageId:
    """Return the identity of a key's record.

    Args:
        space: Whose keys these are: a task's name, or a name that several tasks share on purpose.
        value: The key: anything JSON can hold; equal values make equal keys.
    """
    text = canonical(value)
    return MessageId(PREFIX + space, text if len(text) <= _READABLE else digest(text))


def fingerprint(arguments: Mapping[str, Any]) -> str:
    """Return a digest that differs where payloads differ."""
    return digest(canonical(arguments))[:32]


def digest(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


class Recorded(NamedTuple):
    """What a key's record says once it is done."""

    fingerprint: str
    message: str
    result: str | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A key that a running message holds.

    Attributes:
        key: The record's identity.
        row: The record as it was granted.
        fingerprint: Of the payload.
        message: Who holds it.
    """

    key: MessageId
    row: Row
    fingerprint: str
    message: MessageId

    def seal(self, result: str | None) -> str:
        """Return what the record keeps when the work is done with this result."""
        return json.dumps(Recorded(self.fingerprint, str(self.message), result))


def recorded(sealed: str) -> Recorded:
    """Return what a done record says."""
    return Recorded(*json.loads(sealed))
