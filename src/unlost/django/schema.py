"""The outbox's tables, made by ``manage.py migrate`` as ``unlost outbox init`` makes them.

There is one schema and one list of its versions (:mod:`unlost.outbox.schema`), so whichever of the two comes
first, the other finds nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from django.db.migrations import RunPython
from sqlalchemy import Connection, insert, select
from sqlalchemy.engine.mock import MockConnection
from sqlalchemy.schema import CreateIndex, CreateTable

from unlost.database.migrations import versions
from unlost.django.transaction import DjangoTransaction
from unlost.outbox.schema import MIGRATIONS, PART


def bring_up_to(version: int) -> RunPython:
    """Return the operation that brings the tables to a version. It only adds: older releases go on working.

    There is no way back: the tables may hold messages that nobody else has.
    """
    # Where tables can be made in a transaction the whole migration is one; MariaDB refuses to be in one.
    return RunPython(_applying(version), atomic=False)


def _applying(version: int) -> Callable[[Any, Any], None]:
    def apply(_apps: Any, schema_editor: Any) -> None:
        transaction = DjangoTransaction(schema_editor.connection.alias, needed=False)

        def execute(statement: Any, *_: Any, **__: Any) -> None:
            if isinstance(statement, CreateTable | CreateIndex):
                # MariaDB may have stopped half-way.
                statement.if_not_exists = True
            schema_editor.execute(str(statement.compile(dialect=transaction.dialect)), None)

        database = cast("Connection", MockConnection(transaction.dialect, execute))
        execute(CreateTable(versions))
        present = select(versions.c.version).where(versions.c.part == PART)
        there = {row[0] for row in transaction.execute(present)}
        for each in MIGRATIONS[:version]:
            if each.version not in there:
                each.apply(database)
                transaction.execute(insert(versions), [{"part": PART, "version": each.version}])

    return apply
