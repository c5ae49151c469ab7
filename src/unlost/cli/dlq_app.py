"""What the dead-letter commands take from a Celery app: which tasks there are, and what they take."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from unlost import config
from unlost.core.ids import MessageId
from unlost.core.signing import Seal
from unlost.deadletter.letter import DeadLetter
from unlost.deadletter.redact import ALWAYS, Redactor
from unlost.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Application:
    """The tasks of an app; without an app, nothing is known of any."""

    tasks: Mapping[str, Any] = field(default_factory=dict)
    names: Collection[str] | None = None
    models: Mapping[str, type[BaseModel]] = field(default_factory=dict)
    secrets: Mapping[str, frozenset[str]] = field(default_factory=dict)
    seal: Seal | None = None

    def key_of(self, letter: DeadLetter) -> MessageId | None:
        """Return the identity of the idempotency key of a letter's message, if its task has one."""
        if not self.tasks:
            return None
        # Celery is loaded only where an app is named.
        from unlost.tasks.keys import arguments_of, identity
        from unlost.tasks.task import ReliableTask

        task = self.tasks.get(letter.task)
        if not isinstance(task, ReliableTask) or letter.arguments is None:
            return None
        try:
            return identity(task, arguments_of(task, *letter.arguments)) if task.key is not None else None
        except Exception:  # noqa: BLE001 - the application's own code; the worker says what is wrong with it
            return None

    def redactor(self, more: Collection[str] = ()) -> Redactor:
        """Return what to hide, with more names for all tasks."""
        return Redactor(names=ALWAYS | frozenset(more), by_task=self.secrets, models=self.models)


def application(place: str | None) -> Application:
    """Import a Celery app.

    Args:
        place: ``module:attribute``, found from the working folder; ``None`` for no app.

    Raises:
        ConfigurationError: There is no such app.
    """
    if place is None:
        signing = config.load().signing
        return Application(seal=signing.seal() if signing is not None else None)
    module, _, attribute = place.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        app: Any = getattr(import_module(module), attribute or "app")
        app.loader.import_default_modules()
        tasks: Mapping[str, Any] = app.tasks
    except (ImportError, AttributeError) as exc:
        raise ConfigurationError(
            f"no Celery app at {place!r} ({exc}): give it as module:attribute, importable from here"
        ) from exc
    from unlost.tasks.runtime import has_runtime, runtime_of

    return Application(
        tasks=tasks,
        names=frozenset(tasks),
        models={name: task.payload for name, task in tasks.items() if getattr(task, "payload", None)},
        secrets={name: frozenset(getattr(task, "secrets", ())) for name, task in tasks.items()},
        seal=runtime_of(app).seal if has_runtime(app) else None,
    )
