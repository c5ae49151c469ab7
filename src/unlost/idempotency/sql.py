"""The ledger in a SQL database, beside the business tables so that both commit together.

SQLite is the embedded default: write-ahead log, ``synchronous=FULL`` (the broker is told to forget a
message once its effect is committed, so a commit must survive a power cut), transactions that take the
write lock at their start (https://www.sqlite.org/lang_transaction.html) so that read and write of a
compare-and-set cannot be torn apart. Its clock is the host's time since boot: it cannot be set back, and
a lease of an earlier boot is known to be dead by the boot id in its holder.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from unlost.core import settlement
from unlost.core.clock import boot_time
from unlost.core.headers import Failure
from unlost.core.ids import Generation, MessageId
from unlost.core.settlement import Admission, Delivery, Limits, Resend, Row, Run, State
from unlost.errors import ConfigurationError, LeaseLost, StoreError, StoreUnavailable
from unlost.idempotency.forkgate import ForkGate
from unlost.idempotency.holder import is_gone, is_of_another_boot
from unlost.idempotency.schema import SCHEMA_VERSION, from_columns, messages, metadata, to_columns, versions

#: How long SQLite waits for another writer before it gives up.
LOCK_PATIENCE = timedelta(seconds=30)

_DRIVERS = ("sqlite", "sqlite+pysqlite")


class SqlStore:
    """A :class:`unlost.core.ports.Ledger` in a SQL database.

    Connections do not cross a fork: see :mod:`unlost.idempotency.forkgate`. ``engine`` is the SQLAlchemy
    engine: application code that opens the same file must use it too, and no engine of its own.

    Args:
        url: A SQLAlchemy URL; SQLite for now. A relative path is made absolute at once, because workers
            may change directory.

    Raises:
        ConfigurationError: The database is not one we support.
    """

    def __init__(self, url: str) -> None:
        self._url = _file_url(url)
        self.engine = _sqlite_engine(self._url)
        self._gate = ForkGate(self.engine.dispose)

    def __repr__(self) -> str:
        return f"SqlStore({self._url.render_as_string(hide_password=True)!r})"

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Open a transaction that commits at the end of the block."""
        with self._gate.open(), _errors(), self.engine.begin() as connection:
            yield connection

    def create_schema(self) -> None:
        """Create the tables where they are missing. Safe when several processes start at once."""
        with self._transaction() as connection:
            metadata.create_all(connection)
            connection.execute(insert(versions).values(version=SCHEMA_VERSION).on_conflict_do_nothing())

    def acquire(self, delivery: Delivery, *, lease: timedelta, limits: Limits) -> Admission:
        """Admit a delivery and write what follows. A crash before the commit leaves the row as it was."""
        with self._transaction() as connection:
            row = _read(connection, delivery.message)
            admission = settlement.admit(
                row,
                delivery,
                now=boot_time(),
                now_ms=_now_ms(),
                lease=lease,
                holder_gone=row is not None and row.holder is not None and _is_dead(row.holder),
                limits=limits,
                decision=uuid.uuid4().hex,
            )
            if isinstance(admission, Run) or (isinstance(admission, Resend) and admission.write):
                _write(connection, delivery.message, admission.row)
            return admission

    def complete(
        self, message: MessageId, row: Row, result: str | None, quietly: Failure | None = None
    ) -> None:
        """Mark the message done. After the commit it is done for ever; before it, the lease stands."""
        with self._transaction() as connection:
            _complete(connection, message, row, result, quietly)

    def cancel(self, message: MessageId, generation: Generation) -> bool:
        """Mark the message cancelled, for all its copies; false when it is done already."""
        with self._transaction() as connection:
            row = _read(connection, message)
            if row is not None and row.state is State.DONE:
                return False
            _write(connection, message, settlement.cancelled(row, generation))
            return True

    def decide_waiting(self, message: MessageId, row: Row, *, due_ms: int, failure: Failure) -> Row:
        """End the attempt; the next delivery publishes the retry if this process does not get to it."""
        decided = settlement.decided_waiting(row, decision=uuid.uuid4().hex, due_ms=due_ms, failure=failure)
        return self._replace(message, row, decided)

    def decide_dead(self, message: MessageId, row: Row, *, failure: Failure) -> Row:
        """End the attempt for good; the next delivery publishes the letter if we do not get to it."""
        return self._replace(
            message, row, settlement.decided_dead(row, decision=uuid.uuid4().hex, failure=failure)
        )

    def _replace(self, message: MessageId, row: Row, decided: Row) -> Row:
        with self._transaction() as connection:
            _compare_and_set(connection, message, row, to_columns(decided, _now_ms()))
        return decided

    def mark_sent(self, message: MessageId, decision: str) -> bool:
        """Note the confirmed publish of a decision, unless another decision has followed."""
        statement = (
            update(messages)
            .where(messages.c.message == str(message), messages.c.decision == decision)
            .values(sent=1)
        )
        with self._transaction() as connection:
            return connection.execute(statement).rowcount == 1

    def renew(self, holders: Collection[str], lease: timedelta) -> None:
        """Extend the leases of these holders in one statement; those that hold nothing are no matter."""
        if not holders:
            return
        held = update(messages).where(messages.c.holder.in_(holders), messages.c.state == State.LEASED.value)
        with self._transaction() as connection:
            # Counted from here: another writer may have kept us waiting for the lock.
            connection.execute(held.values(expires=boot_time() + lease.total_seconds()))

    def end_crashed(self, holder: str) -> bool:
        """Count a crash and end the lease, in one transaction; nothing when the message is done."""
        return self._end(holder, settlement.crashed)

    def release(self, holder: str) -> bool:
        """End the lease uncounted; nothing when the holder holds nothing."""
        return self._end(holder, settlement.released)

    def _end(self, holder: str, transition: Callable[[Row], Row]) -> bool:
        held = select(messages).where(messages.c.holder == holder, messages.c.state == State.LEASED.value)
        with self._transaction() as connection:
            found = connection.execute(held).mappings().one_or_none()
            if found is None:
                return False
            values = to_columns(transition(from_columns(found)), _now_ms())
            same = update(messages).where(messages.c.message == found["message"])
            connection.execute(same.values(**values))
            return True

    @contextmanager
    def unit_of_work(
        self, message: MessageId, row: Row, encode: Callable[[Any], str | None]
    ) -> Iterator[SqlWork]:
        """Open a transaction for business rows; on exit the done record is written and all commits.

        Every other writer of a SQLite file waits meanwhile, the renewal of leases too: keep it shorter
        than the lease. What the business rows violate is raised as it is, for the task's retry policy.

        Raises:
            LeaseLost: Somebody took the message over; everything is rolled back.
            StoreError: The body ended the transaction itself; it is not marked done without its rows.
        """
        with self._gate.open(), self._connected() as connection, Session(bind=connection) as session:
            with _errors():
                transaction = connection.begin()
            work = SqlWork(connection, session)
            yield work
            session.flush()
            result = encode(work.result)
            if not transaction.is_active:
                raise StoreError(
                    f"{message}: its unit of work was rolled back or committed inside its block, so it "
                    "cannot end as done: leave that to the block, and use session.begin_nested() for what "
                    "may fail"
                )
            # A COMMIT that fails must be rolled back, or the pool gets a connection that holds the lock.
            with _errors(), transaction:
                # Last before COMMIT: the row's lock is held for as short a time as can be.
                _complete(connection, message, row, result)

    def _connected(self) -> Connection:
        with _errors():
            return self.engine.connect()

    def read(self, message: MessageId) -> Row | None:
        """Return a message's row."""
        with self._gate.open(), _errors(), self.engine.connect() as connection:
            return _read(connection, message)


class SqlWork:
    """The open transaction of :meth:`SqlStore.unit_of_work`."""

    def __init__(self, connection: Connection, session: Session) -> None:
        self.connection = connection
        self.session = session
        self.result: Any = None


class UnguardedStore(SqlStore):
    """The store with the lease switched off, for the runs that prove that the lease is needed."""

    def acquire(self, delivery: Delivery, *, lease: timedelta, limits: Limits) -> Admission:
        """Let every delivery run."""
        admission = super().acquire(delivery, lease=lease, limits=limits)
        if isinstance(admission, Run):
            return admission
        with self._transaction() as connection:
            row = _read(connection, delivery.message)
            again = Row(
                state=State.LEASED,
                generation=delivery.generation,
                token=(row.token if row else 0) + 1,
                holder=delivery.holder,
                expires=boot_time() + lease.total_seconds(),
            )
            _write(connection, delivery.message, again)
            return Run(again)


def _file_url(url: str) -> URL:
    """Return the URL with its path made absolute, if it names an SQLite file."""
    try:
        parsed = make_url(url)
    except ArgumentError as exc:
        raise ConfigurationError("the store is no database URL: use sqlite:///PATH") from exc
    path = parsed.database or ":memory:"
    # A file URI can name a database in memory, and its path would need rules of its own.
    if parsed.drivername not in _DRIVERS or path.startswith((":memory:", "file:")):
        raise ConfigurationError(
            f"the store {parsed.render_as_string(hide_password=True)!r} is not supported: "
            "use sqlite:///PATH with a file that all workers of the host can reach"
        )
    return parsed.set(database=os.path.abspath(path))  # noqa: PTH100 - resolves no links


def _is_dead(holder: str) -> bool:
    """Whether a holder cannot be alive: an SQLite file serves one host, so another boot's are all dead."""
    return is_gone(holder) or is_of_another_boot(holder)


def _read(connection: Connection, message: MessageId) -> Row | None:
    query = select(messages).where(messages.c.message == str(message))
    found = connection.execute(query).mappings().one_or_none()
    return from_columns(found) if found else None


def _write(connection: Connection, message: MessageId, row: Row) -> None:
    values = to_columns(row, _now_ms())
    statement = insert(messages).values(message=str(message), **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["message"], set_=values))


def _complete(
    connection: Connection, message: MessageId, row: Row, result: str | None, quietly: Failure | None = None
) -> None:
    done = {
        "state": State.DONE.value,
        "holder": None,
        "expires": 0.0,
        "token": row.token + 1,
        "result": result,
        "failure": json.dumps(asdict(quietly)) if quietly else None,
        "updated_ms": _now_ms(),
    }
    _compare_and_set(connection, message, row, done)


def _compare_and_set(connection: Connection, message: MessageId, row: Row, values: dict[str, Any]) -> None:
    statement = update(messages).where(
        messages.c.message == str(message),
        messages.c.token == row.token,
        messages.c.state == State.LEASED.value,
    )
    if connection.execute(statement.values(**values)).rowcount != 1:
        raise LeaseLost(f"{message} was taken over: token {row.token} is no longer the latest")


def _now_ms() -> int:
    return int(time.time() * 1000)


@contextmanager
def _errors() -> Iterator[None]:
    """Turn the database's failures into ours."""
    try:
        yield
    except IntegrityError:
        # A constraint of business rows that is checked at COMMIT: the task's error, not the store's.
        raise
    except DBAPIError as exc:
        raise StoreUnavailable(f"the store failed: {exc.orig}") from exc
    except SQLAlchemyError as exc:
        raise StoreUnavailable(f"the store failed: {exc}") from exc


def _sqlite_engine(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": LOCK_PATIENCE.total_seconds()})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # We begin transactions ourselves (below); sqlite3 must not begin them for us.
        connection.isolation_level = None
        # Several first openers of a new file: SQLite refuses all but one at once, without its patience.
        Retrying(
            retry=retry_if_exception_type(sqlite3.OperationalError),
            wait=wait_random(max=0.1),
            stop=stop_after_delay(LOCK_PATIENCE.total_seconds()),
            reraise=True,
        )(connection.execute, "PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
