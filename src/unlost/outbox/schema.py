"""The outbox table, and how a rendered message is written to and read from a row.

Only columns are ever added, with a default, so that a release that does not know them can go on writing
while a newer relay reads.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Index, Integer, LargeBinary, MetaData, String, Table
from sqlalchemy.dialects.mysql import LONGBLOB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from unlost.core.message import Outgoing
from unlost.database.dialect import exact, long_text
from unlost.database.migrations import Migration
from unlost.outbox.state import Entry, State

PART = "outbox"

metadata = MetaData()

_BYTES = LargeBinary().with_variant(LONGBLOB(), "mysql", "mariadb")
#: SQLite counts up by itself only in an INTEGER key; AUTOINCREMENT keeps it from reusing one.
_ID = BigInteger().with_variant(Integer(), "sqlite")

outbox = Table(
    "unlost_outbox",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    Column("message_id", String(255), nullable=False),
    Column("task", String(255), nullable=False),
    Column("ordering_key", exact(255)),
    Column("exchange", String(255), nullable=False),
    Column("routing_key", String(255), nullable=False),
    Column("headers", long_text(), nullable=False),
    Column("properties", long_text(), nullable=False),
    Column("body", _BYTES, nullable=False),
    Column("state", String(16), nullable=False, default=State.PENDING.value),
    # Epoch milliseconds by the database's clock. A lease moves it to its own end.
    Column("available_ms", BigInteger, nullable=False, default=0),
    Column("token", BigInteger, nullable=False, default=0),
    Column("holder", String(255)),
    Column("failures", Integer, nullable=False, default=0),
    Column("reason", long_text()),
    Column("created_ms", BigInteger, nullable=False),
    Column("delivered_ms", BigInteger),
    # What a claim looks for, in its order; with availability, so that the table is not read for it.
    Index("ix_unlost_outbox_pending", "state", "id", "available_ms"),
    Index("ix_unlost_outbox_keys", "ordering_key", "state", "id", "available_ms"),
    Index("ix_unlost_outbox_delivered", "state", "delivered_ms"),
    sqlite_autoincrement=True,
)

#: One row for each ordering key: MariaDB has no lock for a transaction that is not a row's.
keys = Table("unlost_outbox_keys", metadata, Column("ordering_key", exact(255), primary_key=True))


def _create(connection: Connection) -> None:
    metadata.create_all(connection)


MIGRATIONS = (Migration(1, _create),)


class now_ms(FunctionElement[int]):  # noqa: N801 - an SQL function
    """The database's own clock in epoch milliseconds: one moment for a statement, not for a transaction."""

    type = BigInteger()
    inherit_cache = True


@compiles(now_ms, "postgresql")
def _postgresql_now(*_: Any, **__: Any) -> str:
    return "(EXTRACT(EPOCH FROM statement_timestamp()) * 1000)::bigint"


@compiles(now_ms, "sqlite")
def _sqlite_now(*_: Any, **__: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


@compiles(now_ms, "mysql")
@compiles(now_ms, "mariadb")
def _mariadb_now(*_: Any, **__: Any) -> str:
    return "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(3)) DIV 1000)"


def to_columns(message: Outgoing, ordering_key: str | None) -> dict[str, Any]:
    """Return the column values that keep a rendered message.

    Raises:
        TypeError: A header is of a type that neither JSON nor AMQP has.
    """
    body = message.body.encode() if isinstance(message.body, str) else bytes(message.body)
    return {
        "message_id": message.message_id,
        "task": str(message.headers.get("task", "")),
        "ordering_key": ordering_key,
        "exchange": message.exchange,
        "routing_key": message.routing_key,
        "headers": encode(message.headers),
        "properties": encode(message.properties),
        "body": body,
        "state": State.PENDING.value,
        "available_ms": 0,
        "token": 0,
        "failures": 0,
    }


def to_entry(row: Any) -> Entry:
    """Return the claimed row that a result row holds; its token is the one after the row's."""
    message = Outgoing(
        exchange=row.exchange,
        routing_key=row.routing_key,
        body=bytes(row.body),
        headers=decode(row.headers),
        properties=decode(row.properties),
    )
    return Entry(row.id, row.token + 1, row.failures, row.ordering_key, message)


def encode(values: Mapping[str, Any]) -> str:
    """Return a table of AMQP values as JSON; what JSON has no form for is marked with a ``$``.

    Raises:
        TypeError: A value is of a type that AMQP does not have either.
    """
    return json.dumps(dict(values), default=_mark, separators=(",", ":"))


def decode(text: str) -> dict[str, Any]:
    """Return the table that :func:`encode` wrote."""
    # A hook costs, and hardly any message needs one.
    values: dict[str, Any] = json.loads(text, object_hook=_unmark if '{"$' in text else None)
    return values


def _mark(value: Any) -> dict[str, str]:
    if isinstance(value, datetime):
        return {"$datetime": value.isoformat()}
    if isinstance(value, Decimal):
        return {"$decimal": str(value)}
    if isinstance(value, bytes | bytearray | memoryview):
        return {"$bytes": b64encode(value).decode()}
    raise TypeError(f"a {type(value).__name__} cannot be kept in a message's headers or properties")


def _unmark(value: dict[str, Any]) -> Any:
    if len(value) != 1:
        return value
    ((mark, text),) = value.items()
    if mark == "$datetime":
        return datetime.fromisoformat(text)
    if mark == "$decimal":
        return Decimal(text)
    if mark == "$bytes":
        return b64decode(text)
    return value
