"""The ledger over stores that keep one record for each message and can compare and set it.

The transitions are those of :mod:`unlost.core.settlement`, decided here and written by a compare-and-set;
the common operations are one call of the store. Such a store has no transactions that business rows could
join: effects happen at least once, and duplicates are suppressed by the lease and the done record.
"""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from itertools import islice
from typing import Any

from unlost.core import settlement
from unlost.core.headers import Failure
from unlost.core.ids import Generation, MessageId
from unlost.core.keys import Claim
from unlost.core.ports import Work
from unlost.core.settlement import Admission, Delivery, Held, Limits, Resend, Row, Run, State
from unlost.errors import ConfigurationError, LeaseLost
from unlost.idempotency.holder import is_gone

#: The fields of a row, by what a write of it knows. A holder does not know what was counted since it got its
#: lease, and being done changes only what :func:`unlost.core.settlement.done` does.
EVERYTHING = frozenset(Row._fields)
ALL_BUT_COUNTS = EVERYTHING - {"crashes", "lost"}
ENDING = frozenset({"state", "token", "holder", "expires", "result", "failure"})

#: What tells that a holder still has its lease.
_OURS = ("state", "token")
#: What tells a row from any that another writer, a renewal too, may have put in its place.
_IDENTITY = ("state", "token", "holder", "expires", "decision", "sent")

#: How often a compare-and-set that others keep overtaking is tried before the message counts as held.
_TRIES = 10


class RecordStore(ABC):
    """A :class:`unlost.core.ports.Ledger` on compare-and-set; a subclass brings the four operations."""

    @abstractmethod
    def _insert(self, message: str, row: Row, lease: timedelta) -> tuple[Row, float | None]:
        """Write the row if there is none, ``expires`` being the store's time plus the lease.

        Returns:
            The row as written and ``None``; or the row that is there, and the store's time.
        """

    @abstractmethod
    def _replace(
        self,
        message: str,
        before: Row,
        same: tuple[str, ...],
        row: Row,
        writes: frozenset[str] = EVERYTHING,
    ) -> bool:
        """Write some fields of a row, if in some others the present one is the same as one seen before.

        Args:
            message: Whose.
            before: What was seen.
            same: Names of the fields that must be as they were then.
            row: The next one: as before, but for some of the fields that are written.
            writes: Their names. What is not written stays as it is now.
        """

    @abstractmethod
    def _held_by(self, holder: str) -> tuple[str, Row] | None:
        """Return a message that a holder holds, and its row."""

    @abstractmethod
    def _find(self, message: str) -> Row | None:
        """Return a row."""

    @abstractmethod
    def _names(self) -> Iterator[str]:
        """Yield the identities of all rows."""

    @abstractmethod
    def _is_old(self, message: str, older_than: timedelta) -> bool:
        """Whether a row ended longer ago than this."""

    @abstractmethod
    def _remove(self, message: str, older_than: timedelta) -> bool:
        """Remove a row if it ended longer ago than this."""

    @abstractmethod
    def renew(self, holders: Collection[str], lease: timedelta) -> None:
        """Extend the leases of these holders at once; those that hold nothing are no matter."""

    def create_schema(self) -> None:  # noqa: B027 - not all need it
        """Do nothing: records need no tables."""

    def close(self) -> None:  # noqa: B027 - not all need it
        """Close what is open."""

    def acquire(self, delivery: Delivery, *, lease: timedelta, limits: Limits) -> Admission:
        """Admit a delivery and write what follows. A crash before the write leaves the record as it was."""
        message = str(delivery.message)
        first = self._admit(None, delivery, 0.0, lease, limits)
        if not isinstance(first, Run):
            raise TypeError(f"a message without a row must run, not {first}")
        for _ in range(_TRIES):
            row, now = self._insert(message, first.row, lease)
            if now is None:
                return Run(row)
            admission = self._admit(row, delivery, now, lease, limits)
            written = _written(admission)
            if written is None or written == row or self._replace(message, row, _IDENTITY, written):
                return admission
        return Held(1.0)

    def _admit(
        self, row: Row | None, delivery: Delivery, now: float, lease: timedelta, limits: Limits
    ) -> Admission:
        return settlement.admit(
            row,
            delivery,
            now=now,
            now_ms=int(time.time() * 1000),
            lease=lease,
            holder_gone=row is not None and row.holder is not None and is_gone(row.holder),
            limits=limits,
            # Of a message without a row nothing is decided.
            decision=secrets.token_hex(16) if row is not None else "",
        )

    def complete(
        self,
        message: MessageId,
        row: Row,
        result: str | None,
        quietly: Failure | None = None,
        claim: Claim | None = None,
    ) -> None:
        """Mark the message done, after its key; a write of ours whose answer was lost finds itself."""
        if claim is not None:
            self.complete(claim.key, claim.row, claim.seal(result))
        done = settlement.done(row, result=result, quietly=quietly)
        is_written = self._replace(str(message), _as_leased(row), _OURS, done, ENDING)
        if not is_written and not _same(self.read(message), done):
            raise _lost(message, row)

    def cancel(self, message: MessageId, generation: Generation) -> bool:
        """Mark the message cancelled, for all its copies; false when it is done already."""
        while True:
            row = self.read(message)
            if row is not None and row.state is State.DONE:
                return False
            cancelled = settlement.cancelled(row, generation)
            if row is not None:
                if self._replace(str(message), row, _IDENTITY, cancelled):
                    return True
            elif self._insert(str(message), cancelled, timedelta(0))[1] is None:
                return True

    def decide_waiting(self, message: MessageId, row: Row, *, due_ms: int, failure: Failure) -> Row:
        """End the attempt; the next delivery publishes the retry if this process does not get to it."""
        decision = secrets.token_hex(16)
        return self._decide(
            message,
            row,
            settlement.decided_waiting(row, decision=decision, due_ms=due_ms, failure=failure),
        )

    def decide_dead(self, message: MessageId, row: Row, *, failure: Failure) -> Row:
        """End the attempt for good; the next delivery publishes the letter if we do not get to it."""
        return self._decide(
            message, row, settlement.decided_dead(row, decision=secrets.token_hex(16), failure=failure)
        )

    def _decide(self, message: MessageId, row: Row, decided: Row) -> Row:
        if self._replace(str(message), _as_leased(row), _OURS, decided, ALL_BUT_COUNTS):
            return decided
        present = self.read(message)
        # Ours under another id, if the answer to the first try was lost.
        if present is None or not _same(present, decided._replace(decision=present.decision)):
            raise _lost(message, row)
        return present

    def mark_sent(self, message: MessageId, decision: str) -> bool:
        """Note the confirmed publish of a decision, unless another decision has followed."""
        # Who granted the next attempt has put away the decision; until then nobody holds the message.
        row = Row(state=State.WAITING, generation=Generation(0, 0), token=0, decision=decision)
        sent = row._replace(sent=True)
        return self._replace(str(message), row, ("decision",), sent, frozenset({"sent"}))

    def hand_over(self, message: MessageId, row: Row, *, to: str, lease: timedelta, note: str | None) -> Row:
        """Give a lease to another holder, for another time from now on."""
        given = settlement.handed_over(row, to=to, note=note)
        if not self._replace(str(message), _as_leased(row), _OURS, given, ALL_BUT_COUNTS):
            present = self.read(message)
            # Ours, if the answer to the first try was lost.
            if present is None or (present.holder, present.token) != (to, given.token):
                raise _lost(message, row)
            given = present
        self.renew([to], lease)
        return given

    def end_crashed(self, holder: str) -> bool:
        """Count a crash and end the lease, at once; nothing when the message is done."""
        return self._end(holder, crashed=True)

    def release(self, holder: str) -> bool:
        """End the lease uncounted; nothing when the holder holds nothing."""
        return self._end(holder, crashed=False)

    def _end(self, holder: str, *, crashed: bool) -> bool:
        found = False
        while (held := self._held_by(holder)) is not None:
            message, row = held
            ended = settlement.crashed(row) if crashed else settlement.released(row)
            # Asked again if a renewal came between, and for what else it holds.
            found |= self._replace(message, row, _IDENTITY, ended)
        return found

    def unit_of_work(
        self,
        message: MessageId,
        row: Row,  # noqa: ARG002
        encode: Any,  # noqa: ARG002
        claim: Claim | None = None,  # noqa: ARG002
        within: Any = None,  # noqa: ARG002
    ) -> AbstractContextManager[Work]:
        """Refuse: there is no transaction to join.

        Raises:
            ConfigurationError: Always.
        """
        raise ConfigurationError(
            f"{message.task}: unit_of_work() needs a store that shares a transaction with the business rows, "
            f"and {self!r} does not: use a SQL store (sqlite, postgresql+psycopg, mariadb+pymysql), or "
            "leave unit_of_work() away and make the effect idempotent with self.idempotency_token"
        )

    def find(self, text: str, most: int = 100) -> list[tuple[str, Row]]:
        """Return the rows whose identity contains a text."""
        names = sorted(islice((name for name in self._names() if text in name), most))
        return [(name, row) for name in names if (row := self._find(name)) is not None]

    def count_purgeable(self, older_than: timedelta) -> int:
        """Return how many rows a purge would remove."""
        return sum(self._is_old(name, older_than) for name in self._names())

    def purge(self, older_than: timedelta) -> int:
        """Remove what ended longer ago than this, one by one."""
        return sum(self._remove(name, older_than) for name in self._names())

    def read(self, message: MessageId) -> Row | None:
        """Return a message's row."""
        return self._find(str(message))

    def read_many(self, messages: Collection[MessageId]) -> Mapping[MessageId, Row]:
        """Return the rows of those that have one, asked for one by one."""
        return {each: row for each in messages if (row := self.read(each)) is not None}


def _written(admission: Admission) -> Row | None:
    """Return the row that an admission has to write, if any."""
    if isinstance(admission, Run) or (isinstance(admission, Resend) and admission.write):
        return admission.row
    return None


def _as_leased(row: Row) -> Row:
    """Return what must be there for a holder's write: a decided row that it was given is no lease."""
    return row if row.state is State.LEASED else row._replace(state=State.LEASED)


def _same(present: Row | None, wanted: Row) -> bool:
    def essence(row: Row) -> Row:
        return row._replace(sent=False, crashes=0, lost=0)

    return present is not None and essence(present) == essence(wanted)


def _lost(message: MessageId, row: Row) -> LeaseLost:
    return LeaseLost(f"{message} was taken over: token {row.token} is no longer the latest")
