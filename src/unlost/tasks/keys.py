"""A running message claims its key, or learns that the work was done by another."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ValidationError

from unlost.core import headers as h
from unlost.core.ids import MessageId
from unlost.core.keys import Claim, Recorded, fingerprint, key_id, recorded
from unlost.core.settlement import AlreadyDone, Delivery, Limits, Run, State
from unlost.errors import ConfigurationError, KeyConflict, StoreUnavailable
from unlost.tasks.attempt import Attempt
from unlost.tasks.patience import while_store_is_down
from unlost.tasks.runtime import Runtime

if TYPE_CHECKING:
    from unlost.tasks.task import ReliableTask

logger = logging.getLogger(__name__)

Key = str | tuple[str, ...] | Callable[..., Any] | None
OnDuplicate = Literal["return", "ignore", "raise"]

#: What crashes is the message, and that is counted there; a key is never poison.
_NO_LIMITS = Limits(max_crashes=2**31, max_lost=2**31)


class KeyHeld(Exception):
    """Another message with the same key is running."""


class Duplicate(Exception):
    """The key's work was done by another message, and the task says ``on_duplicate = "raise"``."""


def claim(task: ReliableTask, runtime: Runtime, attempt: Attempt, args: Any, kwargs: Any) -> Recorded | None:
    """Claim the key of the attempt's message; ``None`` if it is now ours, or the task has no key.

    Returns:
        What was recorded, if another message has done the work of this key.

    Raises:
        KeyHeld: Another message with this key is running.
        KeyConflict: The key was used with another payload.
    """
    if task.key is None:
        return None
    arguments = arguments_of(task, args, kwargs)
    key, mark = identity(task, arguments), _mark_of(attempt, arguments)
    delivery = Delivery(message=key, generation=attempt.row.generation, holder=attempt.row.holder or "")
    admission = while_store_is_down(
        lambda: attempt.ledger.acquire(delivery, lease=runtime.settings.lease, limits=_NO_LIMITS),
        patience=None,
    )
    if isinstance(admission, Run):
        attempt.claim = Claim(key, admission.row, mark, attempt.message)
        return None
    if not isinstance(admission, AlreadyDone):
        raise KeyHeld(f"{attempt.message}: another message with {key} is running")
    done = recorded(admission.row.result or "")
    _refuse_other_payload(key, mark, done)
    return done


def _mark_of(attempt: Attempt, arguments: Mapping[str, Any]) -> str:
    """Return the fingerprint as the publisher saw the payload; defaults differ from release to release."""
    given = attempt.headers.get(h.FINGERPRINT)
    return given if isinstance(given, str) and given else fingerprint(arguments)


def _refuse_other_payload(key: MessageId, mark: str, done: Recorded) -> None:
    if done.fingerprint != mark:
        raise KeyConflict(
            f"{key} was used by {done.message} with another payload: a key names one piece of work; use "
            "another key, or make all that matters part of it"
        )


def key_headers(task: Any, args: Any, kwargs: Any) -> dict[str, str]:
    """Return the headers that say which key a message has, and a fingerprint of its payload.

    What cannot be told travels without: the worker says what is wrong with it.
    """
    if getattr(task, "key", None) is None:
        return {}
    try:
        arguments = arguments_of(task, args, kwargs)
        return {h.KEY: str(identity(task, arguments)), h.FINGERPRINT: fingerprint(arguments)}
    except (ValidationError, TypeError, ValueError, ConfigurationError):
        return {}


def refuse_reuse(task: ReliableTask, runtime: Runtime, args: Any, kwargs: Any) -> None:
    """Refuse to publish a payload whose key is known to have been used with another.

    What follows from a task that is done is published all the same, and what is written into a transaction is
    published later: there the worker finds it.

    Raises:
        KeyConflict: Names the message that used it.
    """
    if task.key is None or runtime.is_dispatching or runtime.outbox.is_taking:
        return
    arguments = arguments_of(task, args or (), kwargs or {})
    key = identity(task, arguments)
    try:
        row = runtime.ledger.read(key)
    except StoreUnavailable as exc:
        logger.warning("%s is published although nobody can say how its key was used: %s", key, exc)
        return
    if row is not None and row.state is State.DONE:
        _refuse_other_payload(key, fingerprint(arguments), recorded(row.result or ""))


def identity(task: ReliableTask, arguments: Mapping[str, Any]) -> MessageId:
    """Return the identity of the key that these arguments have.

    Raises:
        ConfigurationError: The task's ``key`` names an argument that is not there, or makes no JSON value.
    """
    value = value_of(task, task.key, arguments)
    try:
        return key_id(task.key_space or str(task.name), value)
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(f"{task.name}: key={task.key!r} does not make a JSON value: {exc}") from exc


def value_of(task: ReliableTask, key: Key, arguments: Mapping[str, Any]) -> Any:
    """Return the value that a key has for these arguments.

    Raises:
        ConfigurationError: It names an argument that is not there, or cannot be computed.
    """
    try:
        return _value(key, arguments)
    except KeyError as exc:
        raise ConfigurationError(f"{task.name}: key={key!r} names {exc}, which it does not get") from exc
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(f"{task.name}: key={key!r} has no value: {exc}") from exc


def _value(key: Key, arguments: Mapping[str, Any]) -> Any:
    if isinstance(key, str):
        return arguments[key]
    if isinstance(key, tuple):
        return [arguments[name] for name in key]
    if key is None:
        raise TypeError("no key")
    return key(arguments)


def arguments_of(task: ReliableTask, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments by name, as JSON values: the payload's fields, or those of ``run``."""
    if task.payload is not None:
        return task.to_payload(args, kwargs).model_dump(mode="json")
    bound = inspect.signature(task.run).bind(*args, **kwargs)
    bound.apply_defaults()
    return {name: _plain(value) for name, value in bound.arguments.items()}


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
