"""One delivery in the process that runs it: what was admitted, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unlost.core import headers as h
from unlost.core.headers import Origin
from unlost.core.ids import MessageId
from unlost.core.keys import Claim
from unlost.core.message import Outgoing
from unlost.core.ports import Ledger
from unlost.core.settlement import Admission, Row

#: Properties of a delivery that its copies do not have. The expiration would cut delays short and let the
#: broker drop the message; the broker refuses a ``user_id`` that is not the publisher's (406).
NOT_OURS_TO_REPEAT = frozenset({"application_headers", "expiration", "user_id"})


@dataclass(frozen=True, slots=True)
class NotYet:
    """The delivery is not due: the ledger was not asked."""


@dataclass(frozen=True, slots=True)
class NotAdmitted:
    """The ledger could not say what the delivery may do, for a reason that is not that it is down."""

    error: Exception


@dataclass(kw_only=True)
class Attempt:
    """A delivery between its admission and its settlement.

    ``ledger`` is where it is recorded: the store, or, for a task that runs on while that is down, nowhere.
    ``row`` is the granted lease, or the recorded outcome that is repeated. ``decided`` is set once the
    attempt has ended in a retry or a letter, ``working`` while its unit of work is open, ``completed`` once
    its effect is committed, ``fenced`` when somebody else took the message over, ``crashed`` when the body
    raised what would have ended the process. ``in_process`` counts the attempts that the body made beyond its
    first. ``claim`` is the key that it holds, and ``journalled`` says that it began a step. ``dispatched``
    counts up to ``successors`` as links and the next task of a chain are confirmed, and ``dispatching`` says
    that one is under way. ``lost`` is why the payload that the delivery refers to was not had.
    ``speaks_against`` what the task depends on, if the body raised what its breaker counts. ``request`` is
    what Celery's tracer is given.
    """

    message: MessageId
    ledger: Ledger
    admission: Admission | NotYet | NotAdmitted
    row: Row
    queue: str
    headers: Mapping[str, Any]
    properties: Mapping[str, Any]
    body: bytes | str
    request: Mapping[str, Any] = field(default_factory=dict)
    code_version: str = ""
    successors: int = 0
    has_chord: bool = False
    lost: Exception | None = None
    completed: bool = False
    # What is not known when it begins costs nothing until it is set.
    entered: bool = field(default=False, init=False)
    crashed: bool = field(default=False, init=False)
    in_process: int = field(default=0, init=False)
    dispatched: int = field(default=0, init=False)
    dispatching: bool = field(default=False, init=False)
    working: bool = field(default=False, init=False)
    fenced: bool = field(default=False, init=False)
    decided: Row | None = field(default=None, init=False)
    result: Any = field(default=None, init=False)
    speaks_against: bool = field(default=False, init=False)
    expired: bool = field(default=False, init=False)
    claim: Claim | None = field(default=None, init=False)
    journalled: bool = field(default=False, init=False)

    @property
    def number(self) -> int:
        """Return the number of the present attempt in this redrive, from 1, those in process included."""
        return self.row.generation.attempt + self.in_process

    @property
    def ended(self) -> Row:
        """Return the granted row as the attempt ends: its generation counts the attempts in process."""
        return self.row._replace(generation=self.row.generation._replace(attempt=self.number))

    @property
    def origin(self) -> Origin:
        """Return how the delivery came."""
        return origin_of(self.request.get("delivery_info"), self.code_version)

    @property
    def correlation_id(self) -> str:
        """Return the id that ties together all that one cause set off."""
        return str(self.headers.get(h.CORRELATION_ID) or self.message.id)


def outgoing(
    attempt: Attempt, exchange: str, routing_key: str, headers: Mapping[str, Any], message_id: str
) -> Outgoing:
    """Return the delivery's own message, body untouched, with other headers and another destination."""
    properties = {name: value for name, value in attempt.properties.items() if name not in NOT_OURS_TO_REPEAT}
    return Outgoing(
        exchange=exchange,
        routing_key=routing_key,
        body=attempt.body,
        headers=headers,
        properties={**properties, "message_id": message_id, "delivery_mode": 2},
    )


def origin_of(delivery_info: Any, code_version: str) -> Origin:
    """Return how a delivery came, as the broker told."""
    info = delivery_info or {}
    return Origin(str(info.get("exchange") or ""), str(info.get("routing_key") or ""), code_version)
