"""The unit of work as a task's body sees it: the store's transaction, and tasks that commit with it."""

from __future__ import annotations

from typing import Any

from unlost.core.ports import Work
from unlost.tasks.outbox import TaskOutbox


class UnitOfWork:
    """An open transaction: business rows, the done record, and messages to publish when it commits.

    Attributes:
        result: What the message's result is; dispatched to links and returned to duplicates.
    """

    def __init__(self, work: Work, outbox: TaskOutbox) -> None:
        self._work = work
        self._outbox = outbox
        self.result: Any = None

    @property
    def session(self) -> Any:
        """Return the ORM session that belongs to the transaction."""
        return self._work.session

    @property
    def connection(self) -> Any:
        """Return the connection that the transaction runs on."""
        return self._work.connection

    def publish(self, task: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Publish a task when the unit of work commits; see :func:`unlost.outbox.publish`.

        A relay of the store's database does the publishing (``unlost outbox relay``).
        """
        return self._outbox.apply_async(self.connection, task, args, kwargs)

    def apply_async(self, task: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Publish a task with options when it commits; see :func:`unlost.outbox.apply_async`."""
        return self._outbox.apply_async(self.connection, task, args, kwargs, **options)
