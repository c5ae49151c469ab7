"""Django's transaction around a unit of work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from django.db import DEFAULT_DB_ALIAS, Error, IntegrityError, connections, transaction
from sqlalchemy.engine import URL

from unlost.database.database import resolve
from unlost.database.errors import says_contention
from unlost.database.foreign import ForeignDatabase, Transaction, Visit
from unlost.django.database import store_url
from unlost.django.transaction import DjangoTransaction
from unlost.errors import ConfigurationError, StoreError, StoreUnavailable


class DjangoDatabase(ForeignDatabase):
    """One of Django's databases, for one unit of work in a transaction of this thread's connection.

    Args:
        alias: Of the database, in ``DATABASES``.

    Attributes:
        committed: Whether the transaction has committed, as far as Django knows: what the block raises then
            comes from an ``on_commit`` hook, and undoes nothing.
    """

    def __init__(self, alias: str = DEFAULT_DB_ALIAS) -> None:
        self._alias = alias
        self._concluding = False
        self.committed = False

    @property
    def url(self) -> URL:
        """Return the URL that the entry of ``DATABASES`` amounts to.

        Raises:
            ConfigurationError: It is of a kind that unlost does not know.
        """
        return resolve(store_url(self._alias))

    @contextmanager
    def transaction(self, visit: Visit) -> Iterator[Transaction]:
        """Open ``transaction.atomic()``.

        A connection that broke in an earlier task is made anew, as Django does at the start of a request.

        Raises:
            ConfigurationError: One is open already, and would not commit at the end of the block.
            StoreUnavailable: The database cannot be reached, or what the block ran into may pass; if that
                came out of the COMMIT, whether it happened is unknown.
        """
        connection = connections[self._alias]
        if connection.in_atomic_block or not connection.get_autocommit():
            raise ConfigurationError(
                f"unit_of_work(): a transaction is open on database {self._alias!r} already, and would "
                "commit after the task is done, or never: open unit_of_work() outside of "
                "transaction.atomic(), which inside it is a savepoint"
            )
        entered, raw = False, None
        try:
            with ExitStack() as stack:
                connection.close_if_unusable_or_obsolete()
                connection.ensure_connection()
                raw = connection.connection
                with connection.wrap_database_errors:
                    stack.enter_context(visit(raw))
                stack.enter_context(transaction.atomic(using=self._alias))
                transaction.on_commit(self._note_commit, using=self._alias)
                entered = True
                yield DjangoTransaction(self._alias)
        except Error as exc:
            if self.committed or isinstance(exc, IntegrityError):
                raise
            if entered and not self._concluding and not _may_pass(exc, connection, raw):
                raise
            raise StoreUnavailable(f"database {self._alias!r} failed: {exc}") from exc

    def conclude(self) -> None:
        """Say that the block has ended.

        Raises:
            StoreError: It gave its transaction up; nothing will be committed.
        """
        if transaction.get_rollback(using=self._alias):
            raise StoreError(
                f"the unit of work on database {self._alias!r} was rolled back inside its block, and cannot "
                "end as done: use transaction.atomic() inside it for what may fail alone"
            )
        self._concluding = True

    def _note_commit(self) -> None:
        self.committed = True


def _may_pass(exc: Error, connection: Any, raw: Any) -> bool:
    """Whether the same statements may succeed if they are tried again: contention, a lost connection.

    When a rollback fails, Django closes the driver's connection ``raw`` and opens another.
    """
    return says_contention(exc.__cause__) or connection.connection is not raw or not connection.is_usable()


def close_sqlite() -> None:
    """Close this thread's connections to SQLite files, before a fork that would inherit the locks' ghosts.

    See :mod:`unlost.database.forkgate`. One that is in a transaction stays open: it is not ours to end.
    """
    for connection in connections.all(initialized_only=True):
        if connection.vendor == "sqlite" and not connection.in_atomic_block:
            connection.close()
