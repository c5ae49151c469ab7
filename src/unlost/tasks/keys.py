"""A running message claims its key, or learns that the work was done by another."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from unlost.core.ids import MessageId
from unlost.core.keys import Claim, Recorded, fingerprint, key_id, recorded
from unlost.core.settlement import AlreadyDone, Delivery, Limits, Run
from unlost.errors import ConfigurationError
from unlost.tasks.attempt import Attempt
from unlost.tasks.patience import while_store_is_down
from unlost.tasks.runtime import Runtime

if TYPE_CHECKING:
    from unlost.tasks.task import ReliableTask

Key = str | tuple[str, ...] | Callable[..., Any] | None
OnDuplicate = Literal["return", "ignore", "raise"]

#: What crashes is the message, and that is counted there; a key is never poison.
_NO_LIMITS = Limits(max_crashes=2**31, max_lost=2**31)


class KeyConflict(Exception):
    """The key was used with another payload: dead-lettered as ``key-conflict``."""


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
    key, mark = identity(task, arguments), fingerprint(arguments)
    delivery = Delivery(message=key, generation=attempt.row.generation, holder=attempt.row.holder or "")
    admission = while_store_is_down(
        lambda: runtime.ledger.acquire(delivery, lease=runtime.settings.lease, limits=_NO_LIMITS),
        patience=None,
    )
    if isinstance(admission, Run):
        attempt.claim = Claim(key, admission.row, mark, attempt.message)
        return None
    if not isinstance(admission, AlreadyDone):
        raise KeyHeld(f"{attempt.message}: another message with {key} is running")
    done = recorded(admission.row.result or "")
    if done.fingerprint != mark:
        raise KeyConflict(
            f"{key} was used by {done.message} with another payload: a key names one piece of work; use "
            "another key, or make all that matters part of it"
        )
    return done


def identity(task: ReliableTask, arguments: Mapping[str, Any]) -> MessageId:
    """Return the identity of the key that these arguments have.

    Raises:
        ConfigurationError: The task's ``key`` names an argument that is not there, or makes no JSON value.
    """
    space = task.key_space or str(task.name)
    try:
        return key_id(space, _value(task.key, arguments))
    except KeyError as exc:
        raise ConfigurationError(f"{task.name}: key={task.key!r} names {exc}, which it does not get") from exc
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(f"{task.name}: key={task.key!r} does not make a JSON value: {exc}") from exc


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
