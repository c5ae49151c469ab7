"""The base class of tasks in a Django project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import DEFAULT_DB_ALIAS

from unlost.django import outbox
from unlost.django.unit import DjangoDatabase
from unlost.tasks.task import ReliableTask
from unlost.tasks.work import UnitOfWork


class DjangoTask(ReliableTask):
    """A ``ReliableTask`` whose unit of work is Django's transaction, with Celery's methods for Django.

    Celery's own ``..._on_commit`` publish from ``transaction.on_commit``, so a process that dies behind the
    commit loses the task. These write it into the outbox, in the transaction.
    """

    abstract = True

    @contextmanager
    def unit_of_work(self, within: Any = None, *, using: str = DEFAULT_DB_ALIAS) -> Iterator[UnitOfWork]:
        """Open Django's transaction, in which the effect and the done record commit together.

        Business rows go through Django's ORM; ``transaction.atomic()`` inside the block is a savepoint;
        ``work.publish`` and :mod:`unlost.django.outbox` write tasks into the same transaction. An
        ``on_commit`` hook that raises undoes nothing: the message is done.

        Args:
            within: As for ``ReliableTask``: SQLAlchemy's transaction instead of Django's.
            using: Alias of the database, which must be the store's.

        Raises:
            ConfigurationError: The store is in another database, a transaction is open already, or as
                ``ReliableTask``'s.
            LeaseLost: Somebody took the message over; everything is rolled back.
            StoreUnavailable: The database is down, or another transaction was in the way; the attempt is
                retried.

        Crash safety:
            A crash before the commit leaves nothing; after it, only the successors are dispatched again. A
            COMMIT that is not answered is looked for in the ledger; ``on_commit`` hooks are then not called.
        """
        if within is not None:
            with super().unit_of_work(within) as work:
                yield work
            return
        database = DjangoDatabase(using)
        try:
            with super().unit_of_work(database) as work:
                yield work
        except Exception:
            if database.committed:
                self._committed()
            raise

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> Any:
        """Publish the task when Django's transaction commits; see :func:`unlost.django.outbox.publish`."""
        return outbox.apply_async(self, args, kwargs)

    def apply_async_on_commit(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Publish with options when it commits; see :func:`unlost.django.outbox.apply_async`."""
        return outbox.apply_async(self, args, kwargs, **options)
