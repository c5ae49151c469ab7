"""SQLite: the embedded default, one file for all processes of one host.

Write-ahead log, ``synchronous=FULL`` (the broker is told to forget a message once its effect is
committed, so a commit must survive a power cut), transactions that take the write lock at their start
(https://www.sqlite.org/lang_transaction.html) so that read and write of a compare-and-set cannot be torn
apart. Its clock is the host's time since boot: it cannot be set back, and a lease of an earlier boot is
known to be dead by the boot id in its holder.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Engine, Table, create_engine, event, func
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import URL
from sqlalchemy.sql.dml import Insert
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from unlost.core.clock import boot_time
from unlost.database import dialect
from unlost.database.dialect import DatabaseDialect, Seconds, changed


class SQLite(DatabaseDialect):
    """One file for all processes of one host."""

    name = "sqlite"
    single_host = True
    survives_fork = False

    def engine(self, url: URL) -> Engine:
        """Make an engine whose transactions are all writers, one at a time."""
        engine = create_engine(url, connect_args={"timeout": dialect.LOCK_PATIENCE.total_seconds()})
        event.listen(engine, "connect", _configure)
        event.listen(engine, "begin", _begin)
        return engine

    def clock(self) -> ColumnElement[float]:
        """Return seconds since boot, read inside the statement: after any wait for the write lock."""
        return func.unlost_boot_time(type_=Seconds)

    def wall_ms(self) -> ColumnElement[int]:
        """Return the host's wall clock."""
        return func.unlost_wall_ms(type_=BigInteger)

    def insert_missing(self, table: Table, values: Mapping[str, Any]) -> Insert:
        """Return ``INSERT ... ON CONFLICT DO NOTHING``."""
        return insert(table).values(**values).on_conflict_do_nothing()

    def upsert(self, table: Table, values: Mapping[str, Any], change: Iterable[str] | None = None) -> Insert:
        """Return ``INSERT ... ON CONFLICT DO UPDATE``."""
        statement = insert(table).values(**values)
        update = {name: statement.excluded[name] for name in changed(table, values, change)}
        return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=update)

    @contextmanager
    def exclusive(self, connection: Connection, name: str) -> Iterator[None]:  # noqa: ARG002
        """Do nothing: the transaction that is open holds the file's only write lock."""
        yield

    @contextmanager
    def visiting(self, raw: Any) -> Iterator[None]:
        """Give it our clocks, and let it sync what it commits: the broker forgets the message then."""
        _add_clocks(raw)
        ((before,),) = raw.execute("PRAGMA synchronous").fetchall()
        raw.execute("PRAGMA synchronous=FULL")
        try:
            yield
        finally:
            # One that was closed meanwhile has taken it along.
            with suppress(sqlite3.ProgrammingError):
                raw.execute(f"PRAGMA synchronous={before}")

    @contextmanager
    def relaxed(self, connection: Connection) -> Iterator[None]:
        """Commit into the log without syncing it; the next commit outside syncs what came before it too."""
        raw = connection.connection
        raw.execute("PRAGMA synchronous=NORMAL")
        try:
            yield
        finally:
            raw.execute("PRAGMA synchronous=FULL")


def _configure(connection: Any, _record: Any) -> None:
    # We begin transactions ourselves (below); sqlite3 must not begin them for us.
    connection.isolation_level = None
    _add_clocks(connection)
    # Several first openers of a new file: SQLite refuses all but one at once, without its patience.
    Retrying(
        retry=retry_if_exception_type(sqlite3.OperationalError),
        wait=wait_random(max=0.1),
        stop=stop_after_delay(dialect.LOCK_PATIENCE.total_seconds()),
        reraise=True,
    )(connection.execute, "PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _add_clocks(connection: Any) -> None:
    # Looked up at each call, so that a test can turn the hands.
    connection.create_function("unlost_boot_time", 0, lambda: boot_time())  # noqa: PLW0108
    connection.create_function("unlost_wall_ms", 0, lambda: int(time.time() * 1000))


def _begin(connection: Connection) -> None:
    reads = connection.get_execution_options().get(dialect.READS)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
