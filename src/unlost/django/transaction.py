"""Django's open transaction, for statements that SQLAlchemy has written.

The statements are compiled for the database's dialect and run by Django's own cursor: same connection, same
transaction, and Django's hooks (query logging, ``execute_wrapper``) see them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db import DatabaseError, connections
from sqlalchemy import Dialect, Executable
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.sql.compiler import SQLCompiler

from unlost.database.foreign import Found, Parameters, Transaction
from unlost.errors import ConfigurationError
from unlost.outbox.writer import is_missing

#: Django's cursors take ``%s`` whatever the database.
_PLACEHOLDERS = "format"

_DIALECTS = {
    "postgresql": postgresql.dialect,
    "mysql": mysql.dialect,
    "sqlite": sqlite.dialect,
}


class DjangoTransaction(Transaction):
    """The transaction that ``transaction.atomic()`` has opened on a database.

    Args:
        alias: Of the database, in ``DATABASES``.
        needed: Refuse a database in autocommit mode, where every statement commits by itself.

    Raises:
        ConfigurationError: No transaction is open, or unlost does not know the database.
    """

    def __init__(self, alias: str, *, needed: bool = True) -> None:
        self._connection = connections[alias]
        if needed and not self._connection.in_atomic_block:
            raise ConfigurationError(
                f"no transaction is open on database {alias!r}: publish inside transaction.atomic(), with "
                "the rows that the task is about, or name their database with using=...; a task that belongs "
                "to no rows is published by delay()"
            )
        self._dialect = dialect_of(alias)

    @property
    def dialect(self) -> Dialect:
        """Return SQLAlchemy's dialect of the database."""
        return self._dialect

    def execute(self, statement: Executable, parameters: Parameters = ()) -> Found:
        """Execute a statement, once for each row of parameters; return what the last run found.

        Raises:
            ConfigurationError: It needs a table that is not there.
            django.db.DatabaseError: The database refuses it.
        """
        rows = [parameters] if isinstance(parameters, Mapping) else list(parameters) or [{}]
        compiled = _compile(statement, self._dialect, rows[0])
        found = Found((), 0)
        with self._connection.cursor() as cursor:
            try:
                for row in rows:
                    values = compiled.construct_params(dict(row))
                    cursor.execute(str(compiled), [values[name] for name in compiled.positiontup or ()])
                    found = Found(cursor.fetchall() if cursor.description else (), cursor.rowcount)
            except DatabaseError as exc:
                if not is_missing(exc.__cause__):
                    raise
                raise ConfigurationError(
                    f"database {self._connection.alias!r} has no outbox: put 'unlost.django' into "
                    "INSTALLED_APPS and run `python manage.py migrate unlost`, or name another database with "
                    "using=..."
                ) from exc
        return found


def dialect_of(alias: str) -> Dialect:
    """Return SQLAlchemy's dialect of a database.

    Raises:
        ConfigurationError: It is none that unlost knows.
    """
    vendor = connections[alias].vendor
    if vendor not in _DIALECTS:
        raise ConfigurationError(
            f"database {alias!r} is {vendor}: the outbox knows PostgreSQL, MariaDB and SQLite"
        )
    made: Dialect = _DIALECTS[vendor](paramstyle=_PLACEHOLDERS)
    return made


def _compile(statement: Any, dialect: Dialect, row: Mapping[str, Any]) -> SQLCompiler:
    names = {"column_keys": list(row)} if row else {}
    compiled: SQLCompiler = statement.compile(dialect=dialect, **names)
    return compiled
