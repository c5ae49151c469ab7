"""Schema versions: each part of the library brings its tables to the version it needs, once.

A migration runs while workers of the release before are at work, so it only adds: tables, indexes, columns
that may be null or have a default. What the older release still writes must stay legal. A column goes no
earlier than one release after the last that used it.

Migrations of a part are applied in order, each noted in ``unlost_schema_versions`` when it is through. On
PostgreSQL and SQLite a migration and its note are one transaction. MariaDB commits after every DDL
statement, so a migration that a crash cut short is run again: write it so that it can be
(``checkfirst``, ``IF NOT EXISTS``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Column, Connection, Integer, MetaData, Table, inspect, select

from unlost.database.database import Database
from unlost.database.dialect import exact
from unlost.errors import ConfigurationError

logger = logging.getLogger(__name__)

_LOCK = "unlost-schema"

_metadata = MetaData()

versions = Table(
    "unlost_schema_versions",
    _metadata,
    Column("part", exact(64), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
)


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of a part's schema.

    Attributes:
        version: From 1, without gaps.
        apply: Makes the change on the connection it is given.
    """

    version: int
    apply: Callable[[Connection], None]


def migrate(database: Database, part: str, migrations: Sequence[Migration]) -> list[int]:
    """Apply what is missing of a part's migrations. Safe when several processes start at once.

    A database that is up to date is only read, so that workers need no right to change tables.

    Args:
        database: Where.
        part: Whose tables these are: ``idempotency``, ``outbox``, ...
        migrations: All of the part's, in order.

    Returns:
        The versions that this call applied.

    Raises:
        ConfigurationError: The migrations are not numbered 1, 2, 3, ...
        StoreUnavailable: The database cannot be reached or changed.

    Crash safety:
        What was applied and noted stays; the next call goes on from there.
    """
    if [each.version for each in migrations] != list(range(1, len(migrations) + 1)):
        raise ConfigurationError(f"the migrations of {part} are not numbered 1, 2, 3, ...")
    if not missing(database, part, migrations):
        return []
    with database.transaction() as connection, database.dialect.exclusive(connection, _LOCK):
        _metadata.create_all(connection)
        present = _present(connection, part)
        needed = [each for each in migrations if each.version not in present]
        for each in needed:
            logger.info("database: bringing the tables of %s to version %d", part, each.version)
            each.apply(connection)
            note = {"part": part, "version": each.version}
            connection.execute(database.dialect.insert_missing(versions, note))
    return [each.version for each in needed]


def missing(database: Database, part: str, migrations: Sequence[Migration]) -> list[int]:
    """Return the versions of a part that :func:`migrate` would apply; changes nothing.

    Raises:
        StoreUnavailable: The database cannot be reached.
    """
    with database.transaction() as connection:
        known = inspect(connection).has_table(versions.name)
        present = _present(connection, part) if known else set()
    return [each.version for each in migrations if each.version not in present]


def _present(connection: Connection, part: str) -> set[int]:
    return set(connection.scalars(select(versions.c.version).where(versions.c.part == part)))
