"""MariaDB from 10.6 on, through PyMySQL.

Transactions are READ COMMITTED: MariaDB's default takes gap locks that make strangers wait for each other,
and reads from a snapshot that a compare-and-set must not trust. The session's time zone is UTC, or an hour
would come twice when summer ends.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    Table,
    create_engine,
    event,
    func,
    literal_column,
    select,
    text,
)
from sqlalchemy.dialects.mysql import insert
from sqlalchemy.engine import URL
from sqlalchemy.sql.dml import Insert

from unlost.database import dialect
from unlost.database.dialect import DatabaseDialect, Seconds, changed
from unlost.database.foreign import Transaction
from unlost.errors import StoreUnavailable

logger = logging.getLogger(__name__)

_LIMITED = "unlost_idle_limited"


class MariaDB(DatabaseDialect):
    """A MariaDB server."""

    name = "mariadb"

    def engine(self, url: URL) -> Engine:
        """Make an engine on PyMySQL with bounded waits."""
        seconds = int(dialect.CONNECT_PATIENCE.total_seconds())
        patience = math.ceil(dialect.LOCK_PATIENCE.total_seconds())
        session = (
            "SET time_zone = '+00:00', "
            f"innodb_lock_wait_timeout = {patience}, lock_wait_timeout = {patience}, "
            f"idle_transaction_timeout = {math.ceil(dialect.IDLE_PATIENCE.total_seconds())}"
        )
        arguments = {
            "connect_timeout": seconds,
            # A server that is frozen, or a network that swallows everything, must not hold us for ever.
            "read_timeout": 2 * patience,
            "write_timeout": 2 * patience,
            "charset": "utf8mb4",
            "init_command": session,
        }
        engine = create_engine(
            url, connect_args=arguments, pool_timeout=seconds, isolation_level="READ COMMITTED"
        )
        event.listen(engine, "begin", _restore_idle)
        return engine

    def clock(self) -> ColumnElement[float]:
        """Return ``SYSDATE``: ``NOW()`` is when the statement began, before any wait for a lock."""
        return literal_column("UNIX_TIMESTAMP(SYSDATE(6))", Seconds)

    def wall_ms(self) -> ColumnElement[int]:
        """Return ``SYSDATE`` in milliseconds."""
        return literal_column("CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED)", BigInteger)

    def insert_missing(self, table: Table, values: Mapping[str, Any]) -> Insert:
        """Return an insert whose update changes nothing; ``INSERT IGNORE`` would hide other errors."""
        first = next(iter(table.primary_key))
        return insert(table).values(**values).on_duplicate_key_update({first.name: first})

    def upsert(self, table: Table, values: Mapping[str, Any], change: Iterable[str] | None = None) -> Insert:
        """Return ``INSERT ... ON DUPLICATE KEY UPDATE``."""
        statement = insert(table).values(**values)
        update = {name: statement.inserted[name] for name in changed(table, values, change)}
        return statement.on_duplicate_key_update(update)

    @contextmanager
    def exclusive(self, connection: Connection, name: str) -> Iterator[None]:
        """Hold a user lock, which MariaDB's implicit commits after DDL do not end.

        The transaction ends first: whoever has the lock next must see what was done under it.
        """
        patience = math.ceil(dialect.LOCK_PATIENCE.total_seconds())
        if not connection.execute(select(func.get_lock(name, patience))).scalar():
            raise StoreUnavailable(f"the lock {name!r} of the database was not had within {patience} s")
        try:
            yield
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise
        finally:
            connection.execute(select(func.release_lock(name)))

    def limit_idle(self, connection: Connection | Transaction, idle: timedelta) -> None:
        """Set ``idle_transaction_timeout``, in whole seconds, for the session's transaction or visit."""
        _set_idle(connection, idle)
        if isinstance(connection, Connection):
            connection.info[_LIMITED] = True

    @contextmanager
    def visiting(self, raw: Any) -> Iterator[None]:
        """Set ``idle_transaction_timeout`` back in the end; a session that broke has taken it along."""
        with raw.cursor() as cursor:
            cursor.execute("SELECT @@SESSION.idle_transaction_timeout")
            ((before,),) = cursor.fetchall()
        try:
            yield
        finally:
            try:
                with raw.cursor() as cursor:
                    cursor.execute(f"SET SESSION idle_transaction_timeout = {before}")
            except Exception as exc:  # noqa: BLE001 - of a driver that is not ours to choose
                logger.debug("idle_transaction_timeout was not set back: %s", exc)


def _set_idle(connection: Connection | Transaction, idle: timedelta) -> None:
    seconds = max(1, math.ceil(idle.total_seconds()))
    connection.execute(text(f"SET SESSION idle_transaction_timeout = {seconds}"))


def _restore_idle(connection: Connection) -> None:
    if connection.info.pop(_LIMITED, False):
        _set_idle(connection, dialect.IDLE_PATIENCE)
