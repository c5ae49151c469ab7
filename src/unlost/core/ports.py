"""What the settlement code needs from a store, in the fewest methods."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Protocol

from unlost.core.breaker import Breaker, Circuit
from unlost.core.headers import Failure
from unlost.core.ids import Generation, MessageId
from unlost.core.keys import Claim
from unlost.core.limits import Grant, Limit
from unlost.core.settlement import Admission, Delivery, Limits, Row


class Lease(Protocol):
    """A granted right to run one attempt."""

    @property
    def message(self) -> MessageId:
        """Return what is held."""

    @property
    def row(self) -> Row:
        """Return the row as it was granted."""


class Work(Protocol):
    """An open unit of work: business rows and the done record, one transaction."""

    #: What the message's result is; dispatched to links and returned to duplicates.
    result: Any

    @property
    def session(self) -> Any:
        """Return the ORM session that belongs to the transaction."""

    @property
    def connection(self) -> Any:
        """Return the connection that the transaction runs on."""


class Ledger(Protocol):
    """One row per message, every write to a lease a compare-and-set on its token.

    All methods raise :class:`unlost.errors.StoreUnavailable` when the store cannot be asked.
    """

    def acquire(self, delivery: Delivery, *, lease: timedelta, limits: Limits) -> Admission:
        """Admit a delivery and write the lease, or the decision, that follows."""

    def complete(
        self,
        message: MessageId,
        row: Row,
        result: str | None,
        quietly: Failure | None = None,
        claim: Claim | None = None,
    ) -> None:
        """Mark done, and the claimed key too; raises :class:`unlost.errors.LeaseLost` if a token moved on.

        ``quietly`` says why no successors follow: the task ignored or replaced itself. Where the store
        cannot do both at once the key goes first: the redelivery then finds its own work done.
        """

    def cancel(self, message: MessageId, generation: Generation) -> bool:
        """Mark cancelled, for all copies; false (and no write) when it is done."""

    def decide_waiting(self, message: MessageId, row: Row, *, due_ms: int, failure: Failure) -> Row:
        """End the attempt with a retry to come; raises :class:`unlost.errors.LeaseLost`."""

    def decide_dead(self, message: MessageId, row: Row, *, failure: Failure) -> Row:
        """End the attempt for good; raises :class:`unlost.errors.LeaseLost`."""

    def mark_sent(self, message: MessageId, decision: str) -> bool:
        """Note that a decision's publish was confirmed; false when another decision followed."""

    def renew(self, holders: Collection[str], lease: timedelta) -> None:
        """Extend the leases of these holders, in one statement."""

    def hand_over(self, message: MessageId, row: Row, *, to: str, lease: timedelta, note: str | None) -> Row:
        """Give a lease to another holder, for another time from now on, with a note as the row's result.

        A crash in the middle leaves it with either of them, for the rest of the old time at most.

        Raises:
            LeaseLost: Somebody took it over; nothing was written.
        """

    def end_crashed(self, holder: str) -> bool:
        """Count a crash and end the holder's leases; false (and no write) when it holds nothing."""

    def release(self, holder: str) -> bool:
        """End the holder's leases uncounted; false (and no write) when it holds nothing."""

    def unit_of_work(
        self, message: MessageId, row: Row, encode: Any, claim: Claim | None = None, within: Any = None
    ) -> AbstractContextManager[Work]:
        """Open a transaction that commits business rows and the done record, the key's too, together.

        ``within`` is a session or connection of the caller's whose transaction it shall be.
        """

    def read(self, message: MessageId) -> Row | None:
        """Return the row, for tools and tests."""

    def read_many(self, messages: Collection[MessageId]) -> Mapping[MessageId, Row]:
        """Return the rows of those that have one, for tools that go through many messages."""

    def find(self, text: str, most: int = 100) -> list[tuple[str, Row]]:
        """Return the rows whose identity contains a text, at most so many, for tools."""

    def count_purgeable(self, older_than: timedelta) -> int:
        """Return how many rows :meth:`purge` would remove."""

    def purge(self, older_than: timedelta) -> int:
        """Remove rows that ended (done, dead, cancelled) longer ago than this, in batches that block nobody.

        Records of unique tasks, which do not end, go when their lease has expired and was given as long ago.

        Returns:
            How many were removed. A crash in between leaves the rest for the next purge.
        """

    def create_schema(self) -> None:
        """Make ready what the store needs; safe when several processes start at once."""

    def close(self) -> None:
        """Close the connections that are not in use; the next operation opens others."""


class Throttle(Protocol):
    """The state of breakers and limits that all workers share; all time is the store's.

    Every change is atomic, so that what a worker decides holds for all. All methods raise
    :class:`unlost.errors.StoreUnavailable` when the store cannot be asked; a crash in one of them leaves
    everything as it was, or as it is afterwards.
    """

    def create_schema(self) -> None:
        """Make ready what the store needs; safe when several processes start at once."""

    def circuit(self, name: str) -> Circuit:
        """Return a circuit; closed when nobody has ever counted anything."""

    def circuits(self) -> dict[str, tuple[Circuit, float]]:
        """Return every circuit by name, and how many seconds from now its ``until`` is."""

    def count(self, breaker: Breaker, *, ok: int, failed: int) -> Circuit:
        """Add the ends of attempts, and return the circuit as it is then: it may have opened."""

    def probe(self, breaker: Breaker, who: str) -> bool:
        """Take the probe, if it is time for one; at most one worker has it."""

    def probed(self, breaker: Breaker, who: str, *, ok: bool | None) -> Circuit:
        """Write what came of a probe, unless it was taken over meanwhile."""

    def hold(self, name: str, *, lasts: timedelta, reason: str) -> Circuit:
        """Stop what depends on ``name``, for so long."""

    def release(self, name: str) -> Circuit:
        """Let one message try, and then, if it succeeds, all."""

    def permits(self, limit: Limit, worker: str, *, wanted: int, running: int, lease: timedelta) -> Grant:
        """Give a worker permits to start messages, and note how many it runs then.

        Args:
            limit: The rules.
            worker: Who asks.
            wanted: How many it could start.
            running: How many it runs now.
            lease: For how long its word about that is believed, unless it asks again.
        """

    def refund(self, limit: Limit, unused: int) -> None:
        """Take back permits that no message was found for."""
