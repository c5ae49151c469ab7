"""What a chaos run puts through the system, and how its promises and effects are read.

::

    @dataclass(frozen=True, kw_only=True)
    class Orders(Workload):
        store: str

        def publish(self, number: int) -> None:
            charge_card.delay(order_id=number)

        def value_of(self, task, args, kwargs):
            return str(kwargs["order_id"]) if task == "shop.charge_card" else None

        def effects(self):
            return effects_in_table(self.store, "select order_id, paid_at from payments")
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any

from pydantic import TypeAdapter, ValidationError

from unlost.errors import HarnessError


@dataclass(frozen=True, kw_only=True)
class Workload(ABC):
    """Messages, the effects that each of them promises, and where those can be read.

    Subclasses are dataclasses in an importable module: an instance is made in every process of a run, from
    the same fields. The fields are JSON values, or what pydantic reads from them.

    Args:
        rate: Messages a second, at most.
        duration: How long to publish at that rate.
        threads: How many publish at once.
        batch: How many messages are published by one call, for loads that one by one would not make.
    """

    rate: float = 50.0
    duration: timedelta = timedelta(seconds=10)
    threads: int = 1
    batch: int = 1

    @property
    def messages(self) -> int:
        """Return how many messages that is."""
        return math.ceil(self.rate * self.duration.total_seconds())

    @abstractmethod
    def publish(self, number: int) -> None:
        """Publish message ``number``; returns when it is acknowledged."""

    def publish_many(self, numbers: Sequence[int]) -> None:
        """Publish some messages; returns when all are acknowledged, and else says so of all of them.

        Called where ``batch`` is more than one; by default they are published one after another.
        """
        for number in numbers:
            self.publish(number)

    def promises(self, number: int) -> Sequence[str]:
        """Return the names of the effects that message ``number`` promises; by default its number."""
        return [str(number)]

    @abstractmethod
    def value_of(self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """Return the effect that a started task works on; ``None`` for one that promises none."""

    def values_of_letter(self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[str]:
        """Return the promised effects that a dead letter explains: its own and its successors'."""
        value = self.value_of(task, args, kwargs)
        return [] if value is None else [value]

    @abstractmethod
    def effects(self) -> Iterable[tuple[str, int]]:
        """Return every effect that is there, by name and epoch nanoseconds, from the database itself.

        An effect that happened twice is there twice. See :mod:`unlost.chaos.effects`.
        """


def path_of(workload: Workload) -> str:
    """Return the import path of a workload's class.

    Raises:
        HarnessError: Other processes cannot import it.
    """
    kind = type(workload)
    path = f"{kind.__module__}:{kind.__qualname__}"
    if not dataclasses.is_dataclass(kind) or "." in kind.__qualname__ or kind.__module__ == "__main__":
        raise HarnessError(
            f"the workload {path} must be a dataclass at the top level of an importable module"
        )
    return path


def options_of(workload: Workload) -> Mapping[str, Any]:
    """Return the fields of a workload as JSON values, from which :func:`make` makes an equal one."""
    fields: Mapping[str, Any] = TypeAdapter(type(workload)).dump_python(workload, mode="json")
    return fields


def make(path: str, options: Mapping[str, Any]) -> Workload:
    """Make a workload.

    Args:
        path: ``module:Class``.
        options: Its fields, JSON values.

    Raises:
        HarnessError: There is no such class, or it does not take these options.
    """
    kind = load_attribute(path)
    if not (isinstance(kind, type) and issubclass(kind, Workload) and dataclasses.is_dataclass(kind)):
        raise HarnessError(f"{path} is no dataclass that derives from unlost.chaos.Workload")
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        raise HarnessError(f"workload {path} does not define {', '.join(missing)}")
    try:
        workload: Workload = from_fields(kind, options)
    except ValueError as exc:
        raise HarnessError(f"workload {path} {exc}") from exc
    return workload


def from_fields(kind: type[Any], fields: Mapping[str, Any]) -> Any:
    """Make a dataclass from JSON values, or what pydantic reads from them.

    Raises:
        ValueError: It has no such field, or does not take the value; the message goes on after its name.
    """
    known = sorted(field.name for field in dataclasses.fields(kind) if field.init)
    if unknown := sorted(fields.keys() - set(known)):
        raise ValueError(f"has no {', '.join(unknown)}; it has {', '.join(known)}")
    try:
        return TypeAdapter(kind).validate_python(dict(fields))
    except ValidationError as exc:
        # Without the links that pydantic's own text has.
        said = [": ".join([*map(str, each["loc"]), each["msg"]]) for each in exc.errors()]
        raise ValueError(f"does not take {_shown(fields)}: {'; '.join(said)}") from exc


def _shown(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in fields.items())


def load_attribute(path: str) -> Any:
    """Import ``module:attribute``.

    Raises:
        HarnessError: The path has another form, or names nothing.
    """
    module, _, name = path.partition(":")
    if not (module and name):
        raise HarnessError(f"{path!r} is not of the form module:attribute")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise HarnessError(f"{path!r} cannot be imported as module:attribute: {exc}") from exc
