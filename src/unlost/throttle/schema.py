"""The tables of breakers and limits."""

from __future__ import annotations

from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, inspect, text

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
    # The default is for the release before, which does not write it.
    Column("streak", Integer, nullable=False, server_default="0"),
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


def _add_streak(connection: Connection) -> None:
    present = {column["name"] for column in inspect(connection).get_columns(circuits.name)}
    if "streak" not in present:
        connection.execute(text(f"ALTER TABLE {circuits.name} ADD COLUMN streak INTEGER DEFAULT 0 NOT NULL"))


MIGRATIONS = (Migration(1, _create), Migration(2, _add_streak))
