"""The ledger in this process's memory: for tests of task code, and for nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from unlost.core.ids import MessageId
from unlost.core.keys import Claim
from unlost.core.ports import Work
from unlost.core.settlement import ENDED, Row, State
from unlost.core.uniqueness import is_unique_record
from unlost.errors import StoreUnavailable
from unlost.idempotency.records import EVERYTHING, RecordStore


class MemoryStore(RecordStore):
    """A ledger that ends with the process, and that no other process sees.

    Args:
        clock: Seconds; for tests that turn the hands.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rows: dict[str, Row] = {}
        self._changed: dict[str, float] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return "MemoryStore()"

    def _insert(self, message: str, row: Row, lease: timedelta) -> tuple[Row, float | None]:
        with self._lock:
            if message in self._rows:
                return self._rows[message], self._clock()
            self._rows[message] = row._replace(expires=self._clock() + lease.total_seconds())
            self._changed[message] = self._clock()
            return self._rows[message], None

    def _replace(
        self,
        message: str,
        before: Row,
        same: tuple[str, ...],
        row: Row,
        writes: frozenset[str] = EVERYTHING,
    ) -> bool:
        with self._lock:
            present = self._rows.get(message)
            if present is None or any(getattr(present, name) != getattr(before, name) for name in same):
                return False
            self._rows[message] = present._replace(**{name: getattr(row, name) for name in writes})
            self._changed[message] = self._clock()
            return True

    def _held_by(self, holder: str) -> tuple[str, Row] | None:
        with self._lock:
            held = ((message, row) for message, row in self._rows.items() if _holds(row, (holder,)))
            return next(held, None)

    def _find(self, message: str) -> Row | None:
        with self._lock:
            return self._rows.get(message)

    def _names(self) -> Iterator[str]:
        with self._lock:
            return iter(list(self._rows))

    def _is_old(self, message: str, older_than: timedelta) -> bool:
        row, now = self._rows.get(message), self._clock()
        if row is None:
            return False
        ended = row.state in ENDED or (is_unique_record(message) and row.expires < now)
        return ended and self._changed[message] + older_than.total_seconds() < now

    def _remove(self, message: str, older_than: timedelta) -> bool:
        with self._lock:
            return self._is_old(message, older_than) and self._rows.pop(message, None) is not None

    def renew(self, holders: Collection[str], lease: timedelta) -> None:
        """Extend the leases of these holders at once."""
        with self._lock:
            expires = self._clock() + lease.total_seconds()
            for message, row in self._rows.items():
                if _holds(row, holders):
                    self._rows[message] = row._replace(expires=expires)


class Unrecorded(MemoryStore):
    """The ledger of one attempt that runs although the store is down: nobody else will hear of it."""

    def unit_of_work(
        self,
        message: MessageId,
        row: Row,  # noqa: ARG002
        encode: Any,  # noqa: ARG002
        claim: Claim | None = None,  # noqa: ARG002
        within: Any = None,  # noqa: ARG002
    ) -> AbstractContextManager[Work]:
        """Refuse: the rows would have to be written to the store that is down.

        Raises:
            StoreUnavailable: Always; the attempt is tried again later.
        """
        raise StoreUnavailable(f"{message}: it runs without the store, so it cannot have a unit of work now")


def _holds(row: Row, holders: Collection[str]) -> bool:
    return row.state is State.LEASED and row.holder in holders
