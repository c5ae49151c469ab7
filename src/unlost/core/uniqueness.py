"""Unique tasks: which message stands for a piece of work, so that no second one is published.

The record of a unique piece of work is a lease, in two steps: while its message is being published the
publisher's process holds it, so that a publisher that dies leaves nothing behind; once the message is
confirmed the lease is handed over to the message. Whether that message still stands in the way is asked of
its own row in the ledger, so there is no lock that somebody must remember to take away.

===================  ==========================================================================
holder               another publish of the same work
===================  ==========================================================================
nobody, or expired   goes on
a publisher          waits for it: until its confirm nobody can rely on its message
a message            conflicts with it, unless the message's row says that it is over
===================  ==========================================================================
"""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from typing import Literal, NamedTuple

from unlost.core.ids import MessageId
from unlost.core.keys import canonical, digest
from unlost.core.settlement import ENDED, Row

#: How long a task's message keeps others like it from being published.
Unique = Literal["until_started", "until_finished"] | timedelta

OnConflict = Literal["skip", "replace", "raise"]

PREFIX = "unique:"

_ROUNDING = 1.0


def unique_id(space: str, value: object) -> MessageId:
    """Return the identity of the record of a unique piece of work.

    Args:
        space: Whose work it is: a task's name, or a name that several tasks share on purpose.
        value: What tells two pieces apart: anything JSON can hold. Kept as a digest: arguments may be secret.
    """
    return MessageId(PREFIX + space, digest(canonical(value)))


def is_unique_record(message: str) -> bool:
    """Whether a row is the record of a unique piece of work, by its stored identity."""
    return message.startswith(PREFIX)


def holder_of(message: MessageId) -> str:
    """Return the holder that a message is. It names no process, so nobody takes it for a dead one."""
    return f"message:{hashlib.sha256(str(message).encode()).hexdigest()}"


class Occupant(NamedTuple):
    """What a record says of the message that holds it.

    Attributes:
        message: Which it is.
        seconds: How long a lease it was given.
    """

    message: MessageId
    seconds: float

    def note(self) -> str:
        """Return the text that the record keeps."""
        return json.dumps(self)


def occupant_of(row: Row | None) -> Occupant | None:
    """Return the message that holds a record, or ``None`` while a publisher does."""
    if row is None or not row.result:
        return None
    message, seconds = json.loads(row.result)
    return Occupant(MessageId(*message), seconds)


def is_over(unique: Unique, occupant: Occupant, remaining: float, row: Row | None) -> bool:
    """Whether a message that was published stands in nobody's way any more.

    Args:
        unique: Of the task.
        occupant: The message.
        remaining: Seconds of its lease, by the store's clock. More than it was given: the clock has begun
            anew, as SQLite's does when its host starts.
        row: Of the message in the ledger; without one no worker has begun it.
    """
    if remaining > occupant.seconds + _ROUNDING:
        return True
    if row is None or isinstance(unique, timedelta):
        return False
    return unique == "until_started" or row.state in ENDED


def lease_of(unique: Unique, longest: timedelta, delay: timedelta) -> timedelta:
    """Return for how long a confirmed message may hold its record at most.

    Args:
        unique: Of the task.
        longest: The bound of those that end with their message, from when that may run.
        delay: Until the message may run.
    """
    return unique if isinstance(unique, timedelta) else longest + delay
