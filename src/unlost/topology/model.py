"""What a team declares: its application's work queues, in a few lines of YAML or Python.

Everything else (dead-letter queues, policies, the delay path, the unroutable queue) follows from it; see
:mod:`unlost.topology.expand`. What does not follow is declared one by one, under ``objects``; see
:mod:`unlost.topology.full_form`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from unlost.errors import TopologyError
from unlost.topology import naming
from unlost.topology.full_form import Objects, empty_if_none
from unlost.topology.load import Document, problems_of, read
from unlost.topology.schema import keys_of


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WorkQueue(_Value):
    """A quorum queue that workers consume, with its own dead-letter queue.

    Attributes:
        without_store: Its tasks run without a ledger, so the broker has to notice poison: a message is
            dead-lettered after 100 failed deliveries. With a ledger the broker counts nothing, because
            its count also punishes messages that merely waited beside a crash.
        consumer_timeout: How long a worker may hold a delivery before the broker takes it back. It must
            exceed the hard time limit of the slowest task. ``None`` sets none, which leaves the
            broker's own (30 minutes by default). RabbitMQ before 3.12 knows only its own.
        single_active_consumer: Deliver to one consumer at a time. Cannot be changed later.
        hard_time_limit: Hard time limit of the slowest task, for ``lint`` to compare with the timeout.
    """

    without_store: bool = False
    consumer_timeout: timedelta | None = Field(default=timedelta(hours=1), ge=timedelta(seconds=1))
    single_active_consumer: bool = False
    hard_time_limit: timedelta | None = Field(default=None, ge=timedelta(0))


class Delay(_Value):
    """The delay path of an application.

    Attributes:
        levels: How many levels it has; the longest delay is ``2**levels - 1`` seconds. It cannot be changed
            while messages wait, because every key on the path has one bit per level.
    """

    levels: int = Field(default=naming.MAX_LEVELS, ge=1, le=naming.MAX_LEVELS)

    @property
    def longest(self) -> timedelta:
        """Return the longest delay that the path can hold."""
        return naming.longest_delay(self.levels)


class Topology(_Value):
    """The queues of one application, the names of what surrounds them, and whatever else a vhost needs.

    Attributes:
        objects: Objects declared one by one, in the full form.
        name: Prefix of the application's own exchanges and of its delay path. It may be left out only if
            there is no application: nothing but ``objects``.
        exchange: The topic exchange that the application publishes to; by default named like the topology.
        queues: Work queues by name.
        delay: The delay path.
        owns: Regular expressions: exchanges, queues and policies of the vhost whose whole name matches one
            belong to this topology, and are to be deleted when it does not declare them.

    Raises:
        TopologyError: On construction, if a name is unusable or two objects would share one.
    """

    objects: Annotated[Objects | None, BeforeValidator(empty_if_none)] = None
    name: str = Field(default="", validate_default=True)
    exchange: str = Field(default="", validate_default=True)
    queues: Mapping[str, Annotated[WorkQueue, BeforeValidator(empty_if_none)]] = Field(
        default_factory=dict, validate_default=True
    )
    delay: Annotated[Delay, BeforeValidator(empty_if_none)] = Delay()
    owns: tuple[str, ...] = ()

    _document: Document = PrivateAttr(default_factory=Document)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a topology from a YAML file, or from all YAML files of a folder, merged.

        Raises:
            TopologyError: It cannot be read, contradicts itself, or declares something unknown; the message
                names the file and the key.
        """
        document = read(Path(path))
        return cls._of(document)

    @classmethod
    def _of(cls, document: Document) -> Self:
        try:
            topology = cls.model_validate(document.data)
        except ValidationError as exc:
            raise TopologyError(problems_of(exc, document, keys_of(cls))) from exc
        except TopologyError as exc:
            raise TopologyError(f"{document.path}: {exc}") from exc
        topology._document = document
        return topology

    @property
    def has_application(self) -> bool:
        """Tell whether it declares an application, and not only objects."""
        return bool(self.name)

    def where(self, *location: str) -> str | None:
        """Return ``file:line`` of what was declared at a location; ``None`` if it came from no file."""
        return self._document.where(location) if self._document.places else None

    def work_queue(self, name: str) -> WorkQueue:
        """Return a declared work queue.

        Raises:
            TopologyError: No such queue is declared.
        """
        try:
            return self.queues[name]
        except KeyError as exc:
            raise TopologyError(self._undeclared(name)) from exc

    def _undeclared(self, name: str) -> str:
        close = get_close_matches(name, self.queues, n=1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        declared = ", ".join(sorted(self.queues)) or "none"
        return (
            f"queue {name!r} is not declared in topology {self.name!r}{meant}; declared: {declared}. "
            f"Add it under 'queues:' in the topology's YAML and run 'unlost topology apply'"
        )

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.data.get("objects") is not None:
            return value
        if not value and "name" not in info.data:
            raise PydanticCustomError("missing", "Field required")
        return naming.check_exchange_name(value)

    @field_validator("exchange")
    @classmethod
    def _default_exchange(cls, value: str, info: ValidationInfo) -> str:
        exchange = value or info.data.get("name")
        # Without a name, the name's own error is the one to report.
        return naming.check_exchange_name(exchange) if exchange else value

    @field_validator("queues")
    @classmethod
    def _check_queues(cls, value: Mapping[str, WorkQueue]) -> Mapping[str, WorkQueue]:
        for name in value:
            naming.check_queue_name(name)
        return value

    @field_validator("owns")
    @classmethod
    def _check_owns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as exc:
                raise PydanticCustomError(
                    "pattern", "{pattern!r} is no regular expression", {"pattern": pattern}
                ) from exc
        return value

    @model_validator(mode="after")
    def _check_no_name_twice(self) -> Self:
        if not self.name and (self.queues or self.exchange):
            raise TopologyError("'queues' and 'exchange' belong to an application: give it a 'name'")
        objects = self.objects or Objects()
        queues = [*objects.queues, *self._derived(naming.queue_names, self.queues)]
        exchanges = [*objects.exchanges, *self._derived(naming.exchange_names, self.exchange)]
        _refuse_repeated("queue", queues)
        _refuse_repeated("exchange", exchanges)
        return self

    def _derived(self, names: Callable[..., list[str]], declared: object) -> list[str]:
        return names(self.name, declared, self.delay.levels) if self.name else []


def _refuse_repeated(kind: str, names: list[str]) -> None:
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise TopologyError(
            f"{kind} name {repeated[0]!r} is taken twice: once as declared, once derived from another name; "
            "rename the declared one"
        )
