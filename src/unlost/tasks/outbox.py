"""Renders tasks for the outbox: exactly the messages that ``apply_async`` would send, on the same path.

``apply_async`` runs as ever, down to the producer; there the rendered message is kept instead of sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.canvas import Signature

from unlost.core.message import Outgoing
from unlost.errors import ConfigurationError
from unlost.tasks.sink import SinkVar, captured


class TaskOutbox:
    """The outbox of an app: takes what the app's producers would publish.

    Published this way, ``before_task_publish`` and ``after_task_publish`` are sent when the message is
    rendered, and there is no ``task-sent`` event: nothing is sent yet.

    Args:
        sink: The app's.
        ready: Returns a message as it is written, signed for instance; refuses one that could never be
            published; called before anything is written.
    """

    def __init__(self, sink: SinkVar, ready: Callable[[Outgoing], Outgoing]) -> None:
        self._sink = sink
        self._ready = ready

    @property
    def is_taking(self) -> bool:
        """Return whether what is published now is kept for later instead of sent."""
        sink = self._sink.get()
        return sink is not None and not sink.tells and sink.takes(settling=False)

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
        from unlost.outbox.writer import write

        with captured(self._sink, tells=False) as kept:
            result = called.apply_async(args, kwargs, **options)
        write(place, [self._ready(message) for message in kept.messages], ordering_key)
        return result


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
