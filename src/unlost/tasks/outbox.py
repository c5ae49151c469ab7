"""Renders tasks for the outbox: exactly the messages that ``apply_async`` would send, on the same path.

``apply_async`` runs as ever, down to the producer; there the rendered message is kept instead of sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery.canvas import Signature

from unlost.core.message import Outgoing
from unlost.errors import ConfigurationError
from unlost.outbox.writer import write


class TaskOutbox:
    """The outbox of an app: takes what the app's producers would publish.

    Published this way, ``before_task_publish`` and ``after_task_publish`` are sent when the message is
    rendered, and there is no ``task-sent`` event: nothing is sent yet.
    """

    def __init__(self) -> None:
        self._taken: ContextVar[list[Outgoing] | None] = ContextVar("unlost_taken", default=None)

    @property
    def is_taking(self) -> bool:
        """Return whether what is published now is kept instead of sent."""
        return self._taken.get() is not None

    def takes(self, message: Outgoing) -> bool:
        """Keep a rendered message, if it shall be; false when it must be sent."""
        taken = self._taken.get()
        if taken is None:
            return False
        taken.append(message)
        return True

    def apply_async(
        self,
        place: Any,
        task: Any,
        args: Any = None,
        kwargs: Any = None,
        *,
        ordering_key: str | None = None,
        **options: Any,
    ) -> Any:
        """Write what a task or canvas would send; see :func:`unlost.outbox.apply_async`."""
        called = _callable_of(task)
        if called.app.conf.task_always_eager:
            raise ConfigurationError(
                "task_always_eager would run the task now, before the transaction commits: switch it off, or "
                "call the task directly where it shall run at once"
            )
        with self.taking() as taken:
            result = called.apply_async(args, kwargs, **options)
        write(place, taken, ordering_key)
        return result

    @contextmanager
    def taking(self) -> Iterator[list[Outgoing]]:
        """Collect what is published inside the block, in this context, instead of sending it."""
        taken: list[Outgoing] = []
        token = self._taken.set(taken)
        try:
            yield taken
        finally:
            self._taken.reset(token)


def _callable_of(task: Any) -> Any:
    """Return the signature, or the registered task of a class or instance.

    Raises:
        ConfigurationError: The class was never registered.
    """
    if isinstance(task, Signature):
        return task
    registered = task.app.tasks.get(task.name)
    if registered is None:
        raise ConfigurationError(f"{task.name} is not registered: app.register_task({task.__name__}())")
    return registered
