"""One delivery in the process that runs it: what was admitted, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlost.core import headers as h
from unlost.core.ids import MessageId
from unlost.core.keys import Claim
from unlost.core.message import Outgoing
from unlost.core.settlement import Admission, Row


@dataclass(frozen=True, slots=True)
class NotYet:
    """The delivery is not due: the ledger was not asked."""


@dataclass(kw_only=True)
class Attempt:
    """A delivery between its admission and its settlement.

    ``row`` is the granted lease, or the recorded outcome that is repeated. ``decided`` is set once the
    attempt has ended in a retry or a letter, ``completed`` once its effect is committed, ``fenced`` when
    somebody else took the message over, ``crashed`` when the body raised what would have ended the
    process. ``claim`` is the key that it holds, and ``journalled`` says that it began a step.
    ``dispatched`` counts up to ``successors`` as links and the next task of a chain are confirmed.
    """

    message: MessageId
    admission: Admission | NotYet
    row: Row
    queue: str
    headers: Mapping[str, Any]
    properties: Mapping[str, Any]
    body: bytes | str
    entered: bool = False
    crashed: bool = False
    successors: int = 0
    dispatched: int = 0
    has_chord: bool = False
    completed: bool = False
    fenced: bool = False
    decided: Row | None = None
    result: Any = None
    claim: Claim | None = None
    journalled: bool = False

    @property
    def correlation_id(self) -> str:
        """Return the id that ties together all that one cause set off."""
        return str(self.headers.get(h.CORRELATION_ID) or self.message.id)


def outgoing(
    attempt: Attempt, exchange: str, routing_key: str, headers: Mapping[str, Any], message_id: str
) -> Outgoing:
    """Return the delivery's own message, body untouched, with other headers and another destination."""
    properties = {
        name: value
        for name, value in attempt.properties.items()
        # The expiration would cut delays short and let the broker drop the message.
        if name not in ("application_headers", "expiration")
    }
    return Outgoing(
        exchange=exchange,
        routing_key=routing_key,
        body=attempt.body,
        headers=headers,
        properties={**properties, "message_id": message_id, "delivery_mode": 2},
    )
