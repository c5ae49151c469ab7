"""The ledger's table, and how a row is read from and written to it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Index, Integer, MetaData, String, Table

from unlost.core.headers import Failure
from unlost.core.ids import Generation
from unlost.core.settlement import Row, State
from unlost.database.dialect import Seconds, exact, long_text
from unlost.database.migrations import Migration

PART = "idempotency"

metadata = MetaData()

messages = Table(
    "unlost_messages",
    metadata,
    Column("message", exact(512), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("redrives", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("holder", exact(255)),
    Column("expires", Seconds, nullable=False),
    Column("decision", String(32)),
    Column("sent", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("lost", Integer, nullable=False),
    Column("due_ms", BigInteger),
    Column("started_ms", BigInteger, nullable=False),
    Column("result", long_text()),
    Column("failure", long_text()),
    Column("updated_ms", BigInteger, nullable=False),
    Index("ix_unlost_messages_holder", "holder"),
)

_ended = Index("ix_unlost_messages_ended", messages.c.state, messages.c.updated_ms)


def _create(connection: Connection) -> None:
    metadata.create_all(connection, tables=[messages])


def _index_ended(connection: Connection) -> None:
    _ended.create(connection, checkfirst=True)


MIGRATIONS = (Migration(1, _create), Migration(2, _index_ended))


#: Columns that only the end of a lease and a takeover change.
COUNTS = frozenset({"crashes", "lost"})


def to_columns(row: Row) -> dict[str, Any]:
    """Return a row's column values, but for the key and the time of the change."""
    return {
        "state": row.state.value,
        "redrives": row.generation.redrives,
        "attempt": row.generation.attempt,
        "token": row.token,
        "holder": row.holder,
        "expires": row.expires,
        "decision": row.decision,
        "sent": int(row.sent),
        "crashes": row.crashes,
        "lost": row.lost,
        "due_ms": row.due_ms,
        "started_ms": row.started_ms,
        "result": row.result,
        "failure": failure_text(row.failure),
    }


def known_to_holder(row: Row) -> dict[str, Any]:
    """Return what a holder may write: it does not know what was counted since it got its lease.

    SQLAlchemy also sets the columns that are named among the parameters of an update alone, so they must not
    be there either.
    """
    return {name: value for name, value in to_columns(row).items() if name not in COUNTS}


def failure_text(failure: Failure | None) -> str | None:
    """Return a failure as the table keeps it."""
    return json.dumps(asdict(failure)) if failure else None


def from_columns(values: Any) -> Row:
    """Return the row that a result mapping holds."""
    return Row(
        state=State(values["state"]),
        generation=Generation(values["redrives"], values["attempt"]),
        token=values["token"],
        holder=values["holder"],
        expires=values["expires"],
        decision=values["decision"],
        sent=bool(values["sent"]),
        crashes=values["crashes"],
        lost=values["lost"],
        due_ms=values["due_ms"],
        started_ms=values["started_ms"],
        result=values["result"],
        failure=Failure(**json.loads(values["failure"])) if values["failure"] else None,
    )
