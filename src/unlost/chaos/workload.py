"""What a chaos run puts through the system, and how its promises and effects are read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

from unlost.errors import HarnessError


class Workload(Protocol):
    """Messages, the effects that each of them promises, and where those can be read.

    An instance is made in every process of a run, from the same options.
    """

    #: Import path of the Celery app that the workers run, ``module:attribute``.
    app: str
    #: How many effects one message promises.
    per_message: int

    def publish(self, number: int) -> None:
        """Publish message ``number``; returns when it is acknowledged."""

    def promises(self, number: int) -> Sequence[str]:
        """Return the names of the effects that message ``number`` promises."""

    def value_of(self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """Return the effect that a started task works on."""

    def values_of_letter(self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[str]:
        """Return the promised effects that a dead letter explains: its own and its successors'."""

    def effects(self) -> Iterable[tuple[str, int]]:
        """Return every effect that is there, by name and epoch nanoseconds, from the database itself."""


def make(path: str, options: Mapping[str, Any]) -> Workload:
    """Make a workload.

    Args:
        path: ``module:Class``.
        options: Keyword arguments of the class, JSON values.

    Raises:
        HarnessError: There is no such class, or it does not take these options.
    """
    factory = load_attribute(path)
    try:
        workload: Workload = factory(**options)
    except TypeError as exc:
        raise HarnessError(f"workload {path} does not take {json.dumps(dict(options))}: {exc}") from exc
    return workload


def load_attribute(path: str) -> Any:
    """Import ``module:attribute``.

    Raises:
        HarnessError: The path has another form, or names nothing.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise HarnessError(f"{path!r} cannot be imported as module:attribute: {exc}") from exc
