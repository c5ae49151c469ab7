"""Writes rendered messages into the caller's transaction, and nothing else: the caller commits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, select
from sqlalchemy.dialects.mysql import insert as mysql_insert
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.orm import Session, scoped_session

from unlost.core.message import Outgoing
from unlost.database.foreign import Transaction
from unlost.errors import ConfigurationError
from unlost.outbox.schema import keys, now_ms, outbox, to_columns

#: PostgreSQL tells those who listen here when a transaction with messages has committed.
CHANNEL = "unlost_outbox"

MAX_KEY_BYTES = 255


def write(
    place: Session | scoped_session[Session] | Connection | Transaction,
    messages: Sequence[Outgoing],
    ordering_key: str | None = None,
) -> None:
    """Write messages into the outbox, in the transaction that ``place`` is in.

    Messages of one ordering key are published in the order in which their transactions commit: the key is
    locked from here to the end of the transaction, so that two of them cannot cross.

    Args:
        place: The session, connection or other transaction that the messages belong to.
        messages: What to publish when it has committed, in this order.
        ordering_key: The messages are published one after the other, behind earlier ones of the key.

    Raises:
        ConfigurationError: ``place`` is neither, the key is too long, or the database has no outbox.
        TypeError: A header is of a type that AMQP does not have.

    Crash safety:
        Before the commit nothing is kept. After it, the messages are published, whatever dies.
    """
    connection = connection_of(place)
    rows = [to_columns(message, _checked(ordering_key)) for message in messages]
    if not rows:
        return
    statement = insert(outbox).values(created_ms=now_ms())
    if connection.dialect.name == "postgresql":
        # In the same round trip; PostgreSQL sends one notice for a transaction, at its commit.
        statement = statement.returning(func.pg_notify(CHANNEL, ""))
    try:
        if ordering_key is not None:
            _lock(connection, ordering_key)
        connection.execute(statement, rows)
    except (OperationalError, ProgrammingError) as exc:
        if is_missing(exc.orig):
            raise ConfigurationError(
                "the database of this transaction has no table unlost_outbox: create it with "
                "`unlost outbox init --yes` before the first publish"
            ) from exc
        raise


def connection_of(place: Any) -> Connection | Transaction:
    """Return the connection whose transaction a caller means.

    Raises:
        ConfigurationError: It is no session or connection of SQLAlchemy, or an asynchronous one.
    """
    if isinstance(place, Connection | Transaction):
        return place
    if isinstance(place, Session | scoped_session):
        try:
            return place.connection()
        except SQLAlchemyError as exc:
            if isinstance(exc, DBAPIError):
                raise
            raise ConfigurationError(
                f"the session has no single database for the outbox ({exc}): pass the connection whose "
                "transaction the message belongs to, session.connection(bind_arguments=...)"
            ) from exc
    kind = f"{type(place).__module__}.{type(place).__qualname__}"
    hint = " (asynchronous: await session.run_sync(outbox.publish, ...))" if "asyncio" in kind else ""
    raise ConfigurationError(
        f"a {kind} is no transaction to publish in: pass an SQLAlchemy Session or Connection{hint}"
    )


def _checked(ordering_key: str | None) -> str | None:
    if ordering_key is None:
        return None
    size = len(ordering_key.encode())
    if not 0 < size <= MAX_KEY_BYTES:
        raise ConfigurationError(
            f"an ordering key has 1 to {MAX_KEY_BYTES} bytes, not {size}: {ordering_key[:40]!r}"
        )
    return ordering_key


def _lock(connection: Connection | Transaction, ordering_key: str) -> None:
    """Keep other transactions from writing under the key until this one ends; SQLite has one writer."""
    if connection.dialect.name == "postgresql":
        number = func.hashtextextended(f"{CHANNEL}:{ordering_key}", 0)
        connection.execute(select(func.pg_advisory_xact_lock(number)))
    elif connection.dialect.name in ("mysql", "mariadb"):
        row = mysql_insert(keys).values(ordering_key=ordering_key)
        connection.execute(row.on_duplicate_key_update(ordering_key=ordering_key))


def is_missing(error: BaseException | None) -> bool:
    """Whether a driver says that a table is missing: SQLSTATE 42P01, MariaDB's 1146, or SQLite's text."""
    code = getattr(error, "sqlstate", None)
    first = error.args[0] if error is not None and error.args else None
    return code == "42P01" or first == 1146 or str(first).startswith("no such table")
