"""``ReliableTask.apply_many``: one task for each item of an iterable, with many publishes in flight."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from unlost.broker.errors import ConfirmUnknown, PublishErrors
from unlost.broker.window import Published
from unlost.core import headers as h
from unlost.core.message import Outgoing
from unlost.core.outcome import Outcome
from unlost.errors import ConfigurationError, KeyConflict, PublishError, StoreUnavailable
from unlost.observe.context import current_correlation_id
from unlost.tasks.payload import guard
from unlost.tasks.runtime import Runtime
from unlost.tasks.sink import captured
from unlost.tasks.template import MessageTemplate

logger = logging.getLogger(__name__)

#: What is wrong with one item and harms no other.
_REFUSALS = (TypeError, ValueError, KeyConflict, PublishError, StoreUnavailable)

PROGRESS_EVERY = 1000

Progress = Callable[["Bulk"], None]


@dataclass(frozen=True, slots=True)
class NotPublished:
    """An item of a bulk whose task is not known to be safe.

    Attributes:
        index: Its place in the input, from 0.
        outcome: ``FAILED``: certainly not stored; ``UNKNOWN``: stored or not.
        error: Why; a :class:`unlost.broker.errors.ConfirmUnknown` has a ``resend()``.
        outgoing: The message, if there was one to send.
    """

    index: int
    outcome: Outcome
    error: Exception
    outgoing: Outgoing | None = None

    @property
    def task_id(self) -> str | None:
        """Return the id of the task, if it got one."""
        return None if self.outgoing is None else str(self.outgoing.headers.get("id"))


@dataclass(slots=True)
class Bulk:
    """What became of an ``apply_many``, so far while it runs.

    Attributes:
        confirmed: How many tasks exist for certain.
        problems: Each item of which that cannot be said.
        stopped: Whether it gave up because of too many problems, and left the rest of the input untouched.
    """

    confirmed: int = 0
    problems: list[NotPublished] = field(default_factory=list)
    stopped: bool = False

    @property
    def failed(self) -> list[NotPublished]:
        """Return the items whose tasks certainly do not exist."""
        return [each for each in self.problems if each.outcome is Outcome.FAILED]

    @property
    def unknown(self) -> list[NotPublished]:
        """Return the items whose tasks may exist or not."""
        return [each for each in self.problems if each.outcome is Outcome.UNKNOWN]

    def raise_for_problems(self) -> None:
        """Raise if any item failed or is unknown.

        Raises:
            PublishErrors: Names each of them.
        """
        if self.problems:
            raise PublishErrors(self.summary(), self.problems)

    def resend_unknown(self, *, patience: timedelta | None = None) -> None:
        """Send the unknown ones again under their own ids; what is confirmed leaves the problems."""
        left: list[NotPublished] = []
        for each in self.problems:
            if not isinstance(each.error, ConfirmUnknown):
                left.append(each)
                continue
            try:
                each.error.resend(patience=patience)
            except ConfirmUnknown as exc:
                left.append(NotPublished(each.index, each.outcome, exc, each.outgoing))
            else:
                self.confirmed += 1
        self.problems = left

    def summary(self) -> str:
        """Return a sentence with counts and the first problem."""
        text = f"{self.confirmed} confirmed, {len(self.failed)} failed, {len(self.unknown)} unknown"
        if self.problems:
            first = self.problems[0]
            text += f"; the first, item {first.index}: {type(first.error).__name__}: {first.error}"
        return text + ("; gave up, the rest of the input was not taken" if self.stopped else "")


class Renderer:
    """Makes the messages of one bulk: by a template if there can be one, else by ``apply_async``.

    Args:
        runtime: Of the task's app.
        task: What is published.
        options: As for ``apply_async``.
        fills_in: Whether a template may be used.
    """

    def __init__(self, runtime: Runtime, task: Any, options: Mapping[str, Any], *, fills_in: bool) -> None:
        self._runtime = runtime
        self._task = task
        self._options = options
        self._fills_in = fills_in
        self._template: MessageTemplate | None = None
        self._ready = task.app.amqp.ready
        #: Signs in the template's stead, unless the body may yet go to a claim store.
        self._seal = runtime.seal if runtime.claims is None else None
        #: ``task_always_eager``: nothing is published, the call returns when the task has run.
        self.runs_at_once = bool(task.app.conf.task_always_eager)
        given = (options.get("headers") or {}).get(h.CORRELATION_ID)
        self._new_correlation = not (given or runtime.attempt.get() or current_correlation_id())

    def __call__(self, item: Any) -> list[Outgoing]:
        """Return the message of one item; several if an ``apply_async`` of the task's own makes several.

        Raises:
            TypeError, ValueError: The item makes no call of the task.
            NotSerialisable: JSON has no form for an argument.
            InvalidMessage: It is too large.
            KeyConflict: Its key is known to have been used with another payload.
            StoreUnavailable: Its payload could not be stored.
        """
        args, kwargs = _call_of(item)
        if self._template is not None:
            args, kwargs = self._checked(args, kwargs)
            message = self._template.fill(args, kwargs)
            if self._seal is None:
                return [self._ready(message)]
            guard(message, self._runtime.settings)
            return [message]
        with captured(self._runtime.sink) as sink:
            self._task.apply_async(args, kwargs, **self._options)
        if self._fills_in and len(sink.messages) == 1:
            self._template = MessageTemplate(
                sink.messages[0], new_correlation=self._new_correlation, seal=self._seal
            )
        # Behind the template: a claim belongs to one message.
        return [self._ready(each) for each in sink.messages]

    def _checked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Do what ``apply_async`` does with arguments before it makes a message of them."""
        task = self._task
        if task.payload is not None:
            dumped: tuple[Any, Any] = task.dump_payload(args, kwargs)
            return dumped
        # Celery has a signature to check against for tasks made by its decorator only.
        if task.typing and (check := getattr(task, "__header__", None)) is not None:
            check(*args, **kwargs)
        return args, kwargs


def publish_all(
    runtime: Runtime,
    render: Renderer,
    items: Iterable[Any],
    *,
    window: int,
    patience: timedelta | None,
    progress: Progress | None,
    max_problems: int,
) -> Bulk:
    """Publish what ``render`` makes of each item; see :meth:`unlost.tasks.task.ReliableTask.apply_many`."""
    bulk = Bulk()
    places: deque[int] = deque()

    def messages() -> Iterator[Outgoing]:
        for index, item in enumerate(items):
            try:
                made = render(item)
            except _REFUSALS as exc:
                bulk.problems.append(NotPublished(index, Outcome.FAILED, exc))
            else:
                bulk.confirmed += render.runs_at_once
                places.extend([index] * len(made))
                yield from made
            if len(bulk.problems) >= max_problems:
                bulk.stopped = True
                return

    for published in runtime.publisher.publish_many(messages(), window=window, patience=patience):
        _note(bulk, places.popleft(), published)
        if progress is not None and (bulk.confirmed + len(bulk.problems)) % PROGRESS_EVERY == 0:
            progress(bulk)
    if progress is not None:
        progress(bulk)
    if bulk.problems:
        logger.error("apply_many: %s", bulk.summary())
    return bulk


def _note(bulk: Bulk, index: int, published: Published) -> None:
    if published.outcome is Outcome.OK:
        bulk.confirmed += 1
    elif published.error is not None:
        bulk.problems.append(NotPublished(index, published.outcome, published.error, published.outgoing))


def _call_of(item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments."""
    if isinstance(item, BaseModel):
        return (item,), {}
    if isinstance(item, Mapping):
        return (), dict(item)
    if isinstance(item, tuple | list):
        return tuple(item), {}
    raise TypeError(
        f"an item of apply_many is a tuple of arguments, a mapping or a payload model, not "
        f"{type(item).__name__}: write (value,) for one argument"
    )


def refuse_shared_id(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that only one message can have.

    Raises:
        ConfigurationError: Names the option.
    """
    for option in ("task_id", "args", "kwargs"):
        if option in options:
            raise ConfigurationError(f"{name}: apply_many makes many tasks, so it takes no {option}")
