"""What becomes of a message in the outbox: pure decisions, no I/O.

A row is *pending* until the broker has confirmed it, then *delivered*; *parked* is where a message ends
that can never be published, with its reason, until an operator sends it back. A lease is no state of its
own: a claimed row is pending and not available until the lease ends, so that nothing needs to be done for
the rows of a relay that died. Its token counts the claims; every write of a relay is a compare-and-set on
it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from unlost.core.message import Outgoing
from unlost.errors import BrokerError, InvalidMessage, Refused, Unroutable

#: A reason is for people; the whole error is in the relay's log.
MAX_REASON = 500


class State(StrEnum):
    """Where a row stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    PARKED = "parked"


@dataclass(frozen=True, slots=True)
class Entry:
    """A claimed row: what to publish, and the token that its lease was granted under.

    ``failures`` counts the publishes that failed for a reason that lies with this message or its queue.
    """

    id: int
    token: int
    failures: int
    ordering_key: str | None
    message: Outgoing


@dataclass(frozen=True, slots=True)
class Delivered:
    """The broker has confirmed it."""


@dataclass(frozen=True, slots=True)
class Again:
    """It stays pending, and is not tried before ``after``.

    ``counted`` says that the message or its queue is at fault, not the way to the broker.
    """

    after: timedelta
    reason: str
    counted: bool


@dataclass(frozen=True, slots=True)
class Park:
    """Trying again cannot help, or has not helped for long enough."""

    reason: str


Verdict = Delivered | Again | Park


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How a message that failed is tried again.

    Attributes:
        first: The wait after the first failure; it doubles with each further one.
        longest: The longest wait.
        unroutable: After so many failures a message that no queue is bound for is parked: a topology that
            is applied late is waited for, a queue that was mistyped is not waited for without end.
    """

    first: timedelta = timedelta(seconds=1)
    longest: timedelta = timedelta(minutes=1)
    unroutable: int = 12

    def after(self, failures: int) -> timedelta:
        """Return the wait after so many failures."""
        doubled: timedelta = self.first * 2 ** min(failures, 30)
        return min(doubled, self.longest)


def judge(entry: Entry, error: BrokerError | None, backoff: Backoff) -> Verdict:
    """Decide what a publish's outcome means for its row.

    Args:
        entry: What was published.
        error: What the publish raised; ``None`` when it was confirmed.
        backoff: How failures are tried again.

    Returns:
        An unknown outcome is published again under the same message id: the ledger absorbs the copy.
        Refusals (a full queue) are tried without end, because the message is as good as ever.
    """
    if error is None:
        return Delivered()
    reason = f"{type(error).__name__}: {error}"[:MAX_REASON]
    if isinstance(error, InvalidMessage):
        return Park(reason)
    if isinstance(error, Unroutable) and entry.failures + 1 >= backoff.unroutable:
        return Park(reason)
    counted = isinstance(error, Unroutable | Refused)
    return Again(backoff.after(entry.failures if counted else 0), reason, counted)


def waves(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield the entries in groups that may be in flight together: one of each ordering key at a time.

    A window of confirms keeps no order: the first may be refused and the second be taken.
    """
    rounds: list[list[Entry]] = []
    taken: defaultdict[str, int] = defaultdict(int)
    for entry in entries:
        number = 0
        if entry.ordering_key is not None:
            number = taken[entry.ordering_key]
            taken[entry.ordering_key] += 1
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(entry)
    yield from rounds


def in_order(entries: Sequence[Entry], missing: dict[str, int]) -> list[Entry]:
    """Return the claimed entries that nothing earlier of their key is missing before.

    Args:
        entries: What a claim has locked.
        missing: For each ordering key, the smallest id that is undelivered and was not locked by the claim
            (another relay has it, or it waits for its next try).
    """
    return [
        entry
        for entry in entries
        if entry.ordering_key is None or entry.id < missing.get(entry.ordering_key, entry.id + 1)
    ]
