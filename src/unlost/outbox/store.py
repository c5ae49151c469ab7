"""What a relay does in the database: claim, settle, purge. Every write is a compare-and-set on the token.

Safe for any number of relays: their transactions are READ COMMITTED (:mod:`unlost.database`), PostgreSQL
and MariaDB skip the rows that another claim has locked, and SQLite has one writer at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    and_,
    any_,
    bindparam,
    case,
    delete,
    func,
    literal,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.dml import Update
from sqlalchemy.sql.elements import ColumnElement

from unlost.database.database import Database
from unlost.database.migrations import migrate, missing
from unlost.outbox.schema import MIGRATIONS, PART, now_ms, outbox, to_entry
from unlost.outbox.state import Again, Delivered, Entry, Park, State, Verdict, in_order

#: Rows that one statement of a purge deletes, so that no lock is held for long.
PURGE_BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What is in an outbox.

    ``ready`` rows wait for a relay, ``leased`` ones are in a relay's hands, ``waiting`` ones have failed
    and wait for their next try. ``oldest`` is the age of the oldest row that is not delivered or parked.
    """

    ready: int = 0
    leased: int = 0
    waiting: int = 0
    parked: int = 0
    delivered: int = 0
    oldest: timedelta | None = None

    @property
    def pending(self) -> int:
        """Return how many rows are not delivered and not parked."""
        return self.ready + self.leased + self.waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row as an operator sees it; no payload."""

    id: int
    task: str
    message_id: str
    ordering_key: str | None
    failures: int
    reason: str | None


class OutboxStore:
    """The outbox of one database.

    All methods raise :class:`unlost.errors.StoreUnavailable` when the database cannot be asked.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.engine = database.engine

    def __repr__(self) -> str:
        return f"OutboxStore({self._database.url.render_as_string(hide_password=True)!r})"

    def _transaction(self) -> AbstractContextManager[Connection]:
        return self._database.transaction()

    def create_schema(self) -> list[int]:
        """Bring the tables to this release's version; return the versions that were missing."""
        return migrate(self._database, PART, MIGRATIONS)

    def missing_versions(self) -> list[int]:
        """Return the versions of the tables that :meth:`create_schema` would apply."""
        return missing(self._database, PART, MIGRATIONS)

    def claim(self, holder: str, limit: int, lease: timedelta) -> list[Entry]:
        """Lease the oldest rows that may be published now, in the order of their insertion.

        Args:
            holder: Who claims, for people to read.
            limit: The most rows to claim.
            lease: How long nobody else gets them; counted by the database's clock.

        Crash safety:
            A crash before the commit leaves the rows as they were, after it until the lease ends.
        """
        with self._transaction() as connection:
            locked = [to_entry(row) for row in connection.execute(_CANDIDATES, {"batch": limit})]
            entries = in_order(locked, _missing(connection, locked))
            if entries:
                leased = update(outbox).where(_among(connection, [each.id for each in entries]))
                until = now_ms() + _milliseconds(lease)
                values = {"token": outbox.c.token + 1, "holder": holder, "available_ms": until}
                connection.execute(leased.values(values))
            return entries

    def settle(self, settled: Sequence[tuple[Entry, Verdict]]) -> int:
        """Write what became of claimed rows, where the lease is still theirs; return how many rows it was.

        Crash safety:
            A crash before the commit has the messages published once more, under the same ids.
        """
        with self._transaction() as connection:
            written = _mark(connection, [entry for entry, verdict in settled if verdict == Delivered()])
            for entry, verdict in settled:
                if isinstance(verdict, Again | Park):
                    written += _write(connection, entry, verdict)
        return written

    def release(self, entries: Sequence[Entry]) -> None:
        """Give leased rows back unpublished, for any relay to claim at once."""
        with self._transaction() as connection:
            for token, ids in _by_token(entries).items():
                held = _held(connection, token, ids)
                connection.execute(held.values(holder=None, available_ms=0))

    def purge(self, retention: timedelta) -> int:
        """Delete rows that were delivered longer ago than ``retention``; return how many."""
        deleted = 0
        old = select(outbox.c.id).where(
            outbox.c.state == State.DELIVERED.value,
            outbox.c.delivered_ms < now_ms() - _milliseconds(retention),
        )
        while True:
            with self._transaction() as connection:
                # Two statements: MariaDB has no LIMIT in such a subquery.
                ids = list(connection.scalars(old.limit(PURGE_BATCH)))
                connection.execute(delete(outbox).where(_among(connection, ids)))
            deleted += len(ids)
            if len(ids) < PURGE_BATCH:
                return deleted

    def status(self) -> Status:
        """Count the rows."""
        pending = outbox.c.state == State.PENDING.value
        available = outbox.c.available_ms <= now_ms()
        query = select(
            _count(pending, available),
            _count(pending, not_(available), outbox.c.holder.is_not(None)),
            _count(pending, not_(available), outbox.c.holder.is_(None)),
            _count(outbox.c.state == State.PARKED.value),
            _count(outbox.c.state == State.DELIVERED.value),
            func.min(case((pending, outbox.c.created_ms))),
            now_ms(),
        ).select_from(outbox)
        with self._transaction() as connection:
            *counts, oldest, now = connection.execute(query).one()
        age = None if oldest is None else timedelta(milliseconds=max(0, now - oldest))
        ready, leased, waiting, parked, delivered = counts
        return Status(
            ready=ready, leased=leased, waiting=waiting, parked=parked, delivered=delivered, oldest=age
        )

    def troubled(self, limit: int = 100) -> list[Row]:
        """Return rows that are parked or have failed, the oldest first."""
        failed = and_(outbox.c.state == State.PENDING.value, outbox.c.failures > 0)
        return self._rows(or_(outbox.c.state == State.PARKED.value, failed), limit)

    def parked(self, limit: int | None = None) -> list[Row]:
        """Return the parked rows, the oldest first."""
        return self._rows(outbox.c.state == State.PARKED.value, limit)

    def _rows(self, which: Any, limit: int | None) -> list[Row]:
        columns = [outbox.c[name] for name in Row.__dataclass_fields__]
        query = select(*columns).where(which).order_by(outbox.c.id).limit(limit)
        with self._transaction() as connection:
            return [Row(**row) for row in connection.execute(query).mappings()]

    def retry(self, ids: Collection[int] | None = None) -> int:
        """Make parked rows pending again, all or some, as if they had never failed; return how many."""
        parked = update(outbox).where(outbox.c.state == State.PARKED.value)
        if ids is not None:
            parked = parked.where(outbox.c.id.in_(ids))
        with self._transaction() as connection:
            return connection.execute(
                parked.values(state=State.PENDING.value, available_ms=0, failures=0)
            ).rowcount


def _candidates() -> Any:
    """Build the claim's query: available, and nothing earlier of its key is out of reach."""
    earlier = outbox.alias("earlier")
    blocked = select(earlier.c.id).where(
        earlier.c.ordering_key == outbox.c.ordering_key,
        earlier.c.state == State.PENDING.value,
        earlier.c.id < outbox.c.id,
        earlier.c.available_ms > now_ms(),
    )
    return (
        select(outbox)
        .where(
            outbox.c.state == State.PENDING.value,
            outbox.c.available_ms <= now_ms(),
            or_(outbox.c.ordering_key.is_(None), not_(blocked.exists())),
        )
        .order_by(outbox.c.id)
        .limit(bindparam("batch", type_=Integer()))
        .with_for_update(skip_locked=True, of=outbox)
    )


def _missing(connection: Connection, locked: Sequence[Entry]) -> dict[str, int]:
    """Return, for each key, the first undelivered row that this claim has not locked.

    Two claims that run at the same moment skip each other's locked rows, and neither sees the other's
    lease: without this one could take the second row of a key while the other takes the first. And SQLite's
    clock moves on while it reads.
    """
    names = {each.ordering_key for each in locked if each.ordering_key is not None}
    if not names:
        return {}
    others = (
        select(outbox.c.ordering_key, func.min(outbox.c.id))
        .where(
            outbox.c.ordering_key.in_(names),
            outbox.c.state == State.PENDING.value,
            not_(_among(connection, [each.id for each in locked])),
        )
        .group_by(outbox.c.ordering_key)
    )
    return {row[0]: row[1] for row in connection.execute(others)}


def _mark(connection: Connection, delivered: Sequence[Entry]) -> int:
    """Mark rows delivered; one statement for all that were claimed equally often, nearly always all."""
    values = {"state": State.DELIVERED.value, "delivered_ms": now_ms(), "holder": None, "reason": None}
    return sum(
        connection.execute(_held(connection, token, ids).values(values)).rowcount
        for token, ids in _by_token(delivered).items()
    )


def _write(connection: Connection, entry: Entry, verdict: Again | Park) -> int:
    values: dict[str, Any] = {"holder": None, "reason": verdict.reason}
    if isinstance(verdict, Again):
        values["available_ms"] = now_ms() + _milliseconds(verdict.after)
        values["failures"] = entry.failures + verdict.counted
    else:
        values |= {"state": State.PARKED.value, "failures": entry.failures + 1}
    return connection.execute(_held(connection, entry.token, [entry.id]).values(values)).rowcount


def _held(connection: Connection, token: int, ids: Sequence[int]) -> Update:
    return update(outbox).where(
        outbox.c.token == token, outbox.c.state == State.PENDING.value, _among(connection, ids)
    )


def _among(connection: Connection, ids: Sequence[int]) -> ColumnElement[bool]:
    """Return ``id IN (...)``; for PostgreSQL as one array, which costs a tenth for a thousand ids."""
    if connection.dialect.name == "postgresql":
        return outbox.c.id == any_(literal(list(ids), ARRAY(BigInteger)))
    return outbox.c.id.in_(ids)


def _by_token(entries: Sequence[Entry]) -> dict[int, list[int]]:
    grouped: defaultdict[int, list[int]] = defaultdict(list)
    for each in entries:
        grouped[each.token].append(each.id)
    return grouped


def _count(*conditions: ColumnElement[bool]) -> ColumnElement[int]:
    # MariaDB has no FILTER clause.
    return func.count(case((and_(*conditions), 1)))


def _milliseconds(duration: timedelta) -> int:
    return duration // timedelta(milliseconds=1)


_CANDIDATES = _candidates()
