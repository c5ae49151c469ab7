"""Queues of the full form: one model per queue type, with the arguments of that type and no other.

What RabbitMQ answers with ``invalid arg`` at declaration is an error here at construction. Which type takes
which argument was found by declaring each on 3.10, 4.0 and 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from unlost.topology.objects import QUEUE_TYPE_ARGUMENT, Queue, Value

_MILLISECOND = timedelta(milliseconds=1)

Overflow = Literal["drop-head", "reject-publish", "reject-publish-dlx"]
Duration = Annotated[timedelta, Field(ge=timedelta(0))]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]


class QueueForm(BaseModel):
    """What queues of every type have.

    Attributes:
        arguments: Arguments that no attribute stands for; the broker keeps them and compares none of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Attribute: the broker's argument.
    typed: ClassVar[Mapping[str, str]] = {}

    arguments: Mapping[str, Any] = Field(default_factory=dict)

    def to_queue(self, name: str, default_type: str) -> Queue:
        """Return the queue as it is declared to a broker.

        Args:
            name: Its name.
            default_type: For a queue that leaves its type open.
        """
        arguments: dict[str, Value] = {QUEUE_TYPE_ARGUMENT: getattr(self, "type", default_type)}
        if arguments[QUEUE_TYPE_ARGUMENT] == "default":
            arguments[QUEUE_TYPE_ARGUMENT] = default_type
        for attribute, argument in self.typed.items():
            value = getattr(self, attribute)
            if value is not None:
                arguments[argument] = _to_broker(value)
        return Queue(
            name=name,
            durable=getattr(self, "durable", True),
            auto_delete=getattr(self, "auto_delete", False),
            arguments={**arguments, **self.arguments},
        )

    @model_validator(mode="before")
    @classmethod
    def _explain_arguments_of_others(cls, data: object) -> object:
        if isinstance(data, Mapping):
            for attribute in data.keys() - cls.model_fields.keys():
                others = [each for each in FORMS if attribute in each.typed]
                if others:
                    raise PydanticCustomError(
                        "other_type",
                        "{attribute!r} is an argument of {others} queues, a {this} queue has none; remove it",
                        {
                            "attribute": attribute,
                            "others": " and ".join(_type_of(each) for each in others),
                            "this": _type_of(cls),
                        },
                    )
        return data

    @model_validator(mode="after")
    def _refuse_untyped(self) -> Self:
        """Refuse what an attribute stands for, here or in another type."""
        forms: tuple[type[QueueForm], ...] = (type(self), *FORMS)
        for form in forms:
            for attribute, argument in form.typed.items():
                if argument in self.arguments:
                    raise PydanticCustomError(
                        "typed_argument",
                        "argument {argument!r} is {attribute!r} of a {type} queue; write it so, or remove it",
                        {"argument": argument, "attribute": attribute, "type": _type_of(form)},
                    )
        if QUEUE_TYPE_ARGUMENT in self.arguments:
            raise PydanticCustomError("typed_argument", "argument 'x-queue-type' is 'type'; write it so", {})
        return self


class _Limited(QueueForm):
    """What classic and quorum queues share."""

    message_ttl: Duration | None = None
    expires: Annotated[timedelta, Field(ge=_MILLISECOND)] | None = None
    max_length: Count | None = None
    max_length_bytes: Count | None = None
    overflow: Overflow | None = None
    dead_letter_exchange: str | None = None
    dead_letter_routing_key: str | None = None
    single_active_consumer: bool | None = None
    leader_locator: str | None = None


_LIMITED = {
    "message_ttl": "x-message-ttl",
    "expires": "x-expires",
    "max_length": "x-max-length",
    "max_length_bytes": "x-max-length-bytes",
    "overflow": "x-overflow",
    "dead_letter_exchange": "x-dead-letter-exchange",
    "dead_letter_routing_key": "x-dead-letter-routing-key",
    "single_active_consumer": "x-single-active-consumer",
    "leader_locator": "x-queue-leader-locator",
}


class QuorumQueue(_Limited):
    """A quorum queue: replicated and durable; the type that tasks and letters belong in.

    Anything that a policy can set belongs in a policy: arguments cannot be changed.
    """

    typed: ClassVar[Mapping[str, str]] = {
        **_LIMITED,
        "initial_group_size": "x-quorum-initial-group-size",
        "target_group_size": "x-quorum-target-group-size",
        "delivery_limit": "x-delivery-limit",
        "dead_letter_strategy": "x-dead-letter-strategy",
        "consumer_timeout": "x-consumer-timeout",
        "consumer_disconnected_timeout": "x-consumer-disconnected-timeout",
        "delayed_retry_type": "x-delayed-retry-type",
        "delayed_retry_min": "x-delayed-retry-min",
        "delayed_retry_max": "x-delayed-retry-max",
    }

    type: Literal["quorum"] = "quorum"
    initial_group_size: Size | None = None
    target_group_size: Size | None = None
    delivery_limit: Annotated[int, Field(ge=-1)] | None = None
    dead_letter_strategy: Literal["at-most-once", "at-least-once"] | None = None
    consumer_timeout: Duration | None = None
    consumer_disconnected_timeout: Duration | None = None
    delayed_retry_type: Literal["disabled", "all", "failed", "returned"] | None = None
    delayed_retry_min: Duration | None = None
    delayed_retry_max: Duration | None = None


class ClassicQueue(_Limited):
    """A classic queue: one copy on one node."""

    typed: ClassVar[Mapping[str, str]] = {
        **_LIMITED,
        "max_priority": "x-max-priority",
        "mode": "x-queue-mode",
        "version": "x-queue-version",
    }

    type: Literal["classic"]
    durable: bool = True
    auto_delete: bool = False
    max_priority: Annotated[int, Field(ge=1, le=255)] | None = None
    mode: Literal["default", "lazy"] | None = None
    version: Literal[1, 2] | None = None


class StreamQueue(QueueForm):
    """A stream: a replicated log that consumers read and nobody empties."""

    typed: ClassVar[Mapping[str, str]] = {
        "max_age": "x-max-age",
        "max_length_bytes": "x-max-length-bytes",
        "segment_size_bytes": "x-stream-max-segment-size-bytes",
        "filter_size_bytes": "x-stream-filter-size-bytes",
        "initial_cluster_size": "x-initial-cluster-size",
        "leader_locator": "x-queue-leader-locator",
    }

    type: Literal["stream"]
    max_age: Annotated[str, Field(pattern=r"^[0-9]+[YMDhms]$")] | None = None
    max_length_bytes: Size | None = None
    segment_size_bytes: Size | None = None
    filter_size_bytes: Annotated[int, Field(ge=16, le=255)] | None = None
    initial_cluster_size: Size | None = None
    leader_locator: str | None = None


class OpenQueue(QueueForm):
    """A queue that leaves its type to the vhost's ``default_queue_type``; ``lint`` advises against it."""

    type: Literal["default"]


FORMS: tuple[type[QueueForm], ...] = (QuorumQueue, ClassicQueue, StreamQueue)


def with_type(value: object) -> object:
    """Let ``events:`` with nothing behind it, or with no type, stand for a quorum queue."""
    if value is None:
        return {"type": "quorum"}
    if isinstance(value, Mapping) and "type" not in value:
        return {"type": "quorum", **value}
    return value


AnyQueue = Annotated[
    Annotated[QuorumQueue | ClassicQueue | StreamQueue | OpenQueue, Field(discriminator="type")],
    BeforeValidator(with_type),
]


def form_of(queue: Queue) -> dict[str, Any]:
    """Return what declares a queue in the full form: the reverse of :meth:`QueueForm.to_queue`."""
    form = next(each for each in FORMS if _type_of(each) == queue.type)
    said: dict[str, Any] = {"type": queue.type}
    if not queue.durable:
        said["durable"] = False
    if queue.auto_delete:
        said["auto_delete"] = True
    rest = {name: value for name, value in queue.arguments.items() if name != QUEUE_TYPE_ARGUMENT}
    for attribute, argument in form.typed.items():
        if argument in rest:
            value = rest.pop(argument)
            said[attribute] = _from_broker(form, attribute, value)
    return {**said, "arguments": rest} if rest else said


def _type_of(form: type[QueueForm]) -> str:
    (name,) = form.model_fields["type"].annotation.__args__  # type: ignore[union-attr]
    return str(name)


def _to_broker(value: object) -> Value:
    return value // _MILLISECOND if isinstance(value, timedelta) else value  # type: ignore[return-value]


def _from_broker(form: type[QueueForm], attribute: str, value: object) -> object:
    is_duration = "timedelta" in str(form.model_fields[attribute].annotation)
    if is_duration and isinstance(value, int):
        return timedelta(milliseconds=value)
    return value
