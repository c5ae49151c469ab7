"""The tables of breakers and limits."""

from __future__ import annotations

from sqlalchemy import Column, Connection, Integer, MetaData, String, Table

from unlost.database.dialect import Seconds, exact, long_text
from unlost.database.migrations import Migration

PART = "throttle"

metadata = MetaData()

#: One row for each breaker: :class:`unlost.core.breaker.Circuit` by its fields.
circuits = Table(
    "unlost_circuits",
    metadata,
    Column("name", exact(190), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("until", Seconds, nullable=False),
    Column("since", Seconds, nullable=False),
    Column("counted_since", Seconds, nullable=False),
    Column("ok", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("ok_before", Integer, nullable=False),
    Column("failed_before", Integer, nullable=False),
    Column("prober", String(255)),
    Column("reason", long_text(), nullable=False),
    Column("trips", Integer, nullable=False),
)

#: One row for each limit: up to when its rate is used up.
limits = Table(
    "unlost_limits",
    metadata,
    Column("name", exact(190), primary_key=True),
    Column("paid_until", Seconds, nullable=False),
)

#: One row for each worker that runs messages under a limit: how many, and until when that may be believed.
slots = Table(
    "unlost_limit_slots",
    metadata,
    Column("name", exact(190), primary_key=True),
    Column("worker", exact(190), primary_key=True),
    Column("taken", Integer, nullable=False),
    Column("expires", Seconds, nullable=False),
)


def _create(connection: Connection) -> None:
    metadata.create_all(connection)


MIGRATIONS = (Migration(1, _create),)
