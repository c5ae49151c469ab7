"""The base class of tasks in a Django project."""

from __future__ import annotations

from typing import Any

from unlost.django import outbox
from unlost.tasks.task import ReliableTask


class DjangoTask(ReliableTask):
    """A ``ReliableTask`` whose ``..._on_commit`` methods are those of Celery's own task class for Django.

    Celery's publish from ``transaction.on_commit``, so a process that dies behind the commit loses the task.
    These write it into the outbox, in the transaction.
    """

    abstract = True

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> Any:
        """Publish the task when Django's transaction commits; see :func:`unlost.django.outbox.publish`."""
        return outbox.apply_async(self, args, kwargs)

    def apply_async_on_commit(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Publish with options when it commits; see :func:`unlost.django.outbox.apply_async`."""
        return outbox.apply_async(self, args, kwargs, **options)
