"""PostgreSQL, through psycopg 3.

Transactions are READ COMMITTED, the server's default: a locking read sees the newest row. Every wait has
an end: for a lock, for a connection, for a peer that no longer answers (TCP_USER_TIMEOUT), and of the
server for a client that holds a transaction open and does nothing.
"""

from __future__ import annotations

import zlib
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
    cast,
    create_engine,
    extract,
    func,
    select,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import URL
from sqlalchemy.sql.dml import Insert, Update

from unlost.database import dialect
from unlost.database.dialect import DatabaseDialect, Seconds, changed
from unlost.database.foreign import Transaction


class PostgreSQL(DatabaseDialect):
    """A PostgreSQL server."""

    name = "postgresql"

    def engine(self, url: URL) -> Engine:
        """Make an engine on psycopg 3 with bounded waits."""
        settings = {
            "lock_timeout": dialect.LOCK_PATIENCE,
            "idle_in_transaction_session_timeout": dialect.IDLE_PATIENCE,
        }
        options = " ".join(f"-c {name}={_milliseconds(limit)}" for name, limit in settings.items())
        arguments = {
            "connect_timeout": int(dialect.CONNECT_PATIENCE.total_seconds()),
            "options": f"{options} {url.query.get('options', '')}".strip(),
            "keepalives_idle": 5,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": _milliseconds(dialect.LOCK_PATIENCE),
        }
        return create_engine(url, connect_args=arguments, pool_timeout=arguments["connect_timeout"])

    def clock(self) -> ColumnElement[float]:
        """Return ``clock_timestamp()``: ``now()`` is when the transaction began."""
        return type_coerce(extract("epoch", func.clock_timestamp()), Seconds)

    def wall_ms(self) -> ColumnElement[int]:
        """Return ``clock_timestamp()`` in milliseconds."""
        return cast(extract("epoch", func.clock_timestamp()) * 1000, BigInteger)

    def insert_missing(self, table: Table, values: Mapping[str, Any]) -> Insert:
        """Return ``INSERT ... ON CONFLICT DO NOTHING``."""
        return insert(table).values(**values).on_conflict_do_nothing()

    def upsert(self, table: Table, values: Mapping[str, Any], change: Iterable[str] | None = None) -> Insert:
        """Return ``INSERT ... ON CONFLICT DO UPDATE``."""
        statement = insert(table).values(**values)
        update = {name: statement.excluded[name] for name in changed(table, values, change)}
        return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=update)

    @contextmanager
    def exclusive(self, connection: Connection, name: str) -> Iterator[None]:
        """Hold an advisory lock until the transaction ends."""
        connection.execute(select(func.pg_advisory_xact_lock(zlib.crc32(name.encode()))))
        yield

    def limit_idle(self, connection: Connection | Transaction, idle: timedelta) -> None:
        """Set ``idle_in_transaction_session_timeout`` for the rest of the transaction."""
        connection.execute(select(_limited(idle)))

    def limiting_idle(self, update: Update, idle: timedelta) -> Update:
        """Return the update with the setting among what it returns: read for each row that it has locked."""
        return update.returning(_limited(idle))


def _limited(idle: timedelta) -> ColumnElement[str]:
    """Return what sets ``idle_in_transaction_session_timeout`` for the rest of the transaction."""
    return func.set_config("idle_in_transaction_session_timeout", f"{_milliseconds(idle)}", True)


def _milliseconds(limit: timedelta) -> int:
    return int(limit.total_seconds() * 1000)
