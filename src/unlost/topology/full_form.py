"""The full form: every kind of object that a vhost can hold, declared one by one.

Beside the work queues of the short form, or alone, for what Celery does not own. One topology is about one
vhost, whose name comes with the connection: the same files serve a test vhost and production.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from unlost.topology.objects import ApplyTo, DestinationType, QueueType
from unlost.topology.queue_forms import AnyQueue

_KNOWN_EXCHANGES = ("direct", "fanout", "topic", "headers")


def empty_if_none(value: object) -> object:
    """Let a name with nothing behind it stand for an object with every default."""
    return {} if value is None else value


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VhostForm(_Form):
    """The vhost itself; what is left out is left as it is.

    Attributes:
        description: For people.
        tags: For tools.
        default_queue_type: The type of queues that are declared without one.
        limits: ``max-connections`` and ``max-queues``; -1 is none.
    """

    description: str | None = None
    tags: tuple[str, ...] | None = None
    default_queue_type: QueueType | None = None
    limits: Mapping[Literal["max-connections", "max-queues"], Annotated[int, Field(ge=-1)]] = {}


class ExchangeForm(_Form):
    """An exchange of any type.

    Attributes:
        type: ``direct``, ``fanout``, ``topic``, ``headers``, or one of a plugin, which begins with ``x-``.
        alternate_exchange: Where unroutable messages go. It makes ``mandatory`` silent, and cannot be
            changed: prefer a policy, on exchanges that only the broker publishes to.
        arguments: Others, for the types of plugins.
    """

    type: str = "topic"
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    alternate_exchange: str | None = None
    arguments: Mapping[str, Any] = {}

    @field_validator("type")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in _KNOWN_EXCHANGES and not value.startswith("x-"):
            raise PydanticCustomError(
                "exchange_type",
                "must be one of {known}, or a plugin's type that begins with 'x-'",
                {"known": ", ".join(_KNOWN_EXCHANGES)},
            )
        return value

    @model_validator(mode="after")
    def _one_alternate(self) -> Self:
        if "alternate-exchange" in self.arguments:
            raise PydanticCustomError(
                "typed_argument", "argument 'alternate-exchange' is 'alternate_exchange'; write it so", {}
            )
        return self


class BindingForm(_Form):
    """A route from an exchange to a queue, or to another exchange."""

    source: Annotated[str, Field(min_length=1)]
    destination: Annotated[str, Field(min_length=1)]
    destination_type: DestinationType = "queue"
    routing_key: str = ""
    arguments: Mapping[str, Any] = {}

    @field_validator("routing_key")
    @classmethod
    def _fits(cls, value: str) -> str:
        if len(value.encode()) > 255:
            raise PydanticCustomError("long_key", "is longer than the 255 bytes of a routing key", {})
        return value


class PolicyForm(_Form):
    """A policy or operator policy: settings for every object whose name matches.

    Attributes:
        pattern: A regular expression; anchor it (``^shop[.]stock$``), or it matches parts of names.
        apply_to: What it may govern; types of queues from RabbitMQ 3.12 on.
        priority: The highest one that matches an object wins alone; equal ones are decided by chance.
        definition: Settings, by the broker's names (``dead-letter-exchange``), times in milliseconds.
    """

    pattern: Annotated[str, Field(min_length=1)]
    apply_to: ApplyTo = "queues"
    priority: Annotated[int, Field(ge=0)] = 0
    definition: Annotated[Mapping[str, Any], Field(min_length=1)]


class UserForm(_Form):
    """A user. Its password is never written in a topology.

    Attributes:
        tags: What it may do in the management API.
        password_env: Environment variable that holds the password when the topology is applied.
        password_hash: RabbitMQ's hash of the password, instead.
        hashing_algorithm: Of that hash.
        limits: ``max-connections`` and ``max-channels``; -1 is none.

    With neither of the two, a password that is there stays, and a new user cannot log in with one.
    """

    tags: tuple[str, ...] = ()
    password_env: str | None = None
    password_hash: str | None = Field(default=None, repr=False)
    hashing_algorithm: Literal["rabbit_password_hashing_sha256", "rabbit_password_hashing_sha512"] = (
        "rabbit_password_hashing_sha256"
    )
    limits: Mapping[Literal["max-connections", "max-channels"], Annotated[int, Field(ge=-1)]] = {}

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        if self.password_env is not None and self.password_hash is not None:
            raise PydanticCustomError(
                "two_passwords", "has both 'password_env' and 'password_hash'; keep one of the two", {}
            )
        return self


class PermissionForm(_Form):
    """What a user may do in the vhost: regular expressions of names; ``^$`` matches none."""

    configure: str = "^$"
    write: str = "^$"
    read: str = "^$"


class TopicPermissionForm(_Form):
    """Which routing keys a user may use on a topic exchange: regular expressions."""

    write: str = "^$"
    read: str = "^$"


class Objects(_Form):
    """Objects of a vhost, by kind.

    Attributes:
        vhost: The vhost itself.
        exchanges: By name.
        queues: By name; quorum unless a type is given.
        bindings: In any order.
        policies: By name.
        operator_policies: By name; needs a user with the tag ``administrator``.
        users: By name, for the whole broker; needs the tag ``administrator``.
        permissions: By user.
        topic_permissions: By user, then exchange.
        parameters: By component, then name.
    """

    vhost: Annotated[VhostForm, BeforeValidator(empty_if_none)] = VhostForm()
    exchanges: Mapping[str, Annotated[ExchangeForm, BeforeValidator(empty_if_none)]] = {}
    queues: Mapping[str, AnyQueue] = {}
    bindings: tuple[BindingForm, ...] = ()
    policies: Mapping[str, PolicyForm] = {}
    operator_policies: Mapping[str, PolicyForm] = {}
    users: Mapping[str, Annotated[UserForm, BeforeValidator(empty_if_none)]] = {}
    permissions: Mapping[str, Annotated[PermissionForm, BeforeValidator(empty_if_none)]] = {}
    topic_permissions: Mapping[str, Mapping[str, TopicPermissionForm]] = {}
    parameters: Mapping[str, Mapping[str, Any]] = {}

    @field_validator("exchanges", "queues")
    @classmethod
    def _not_reserved(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in value:
            if not name or name.startswith("amq.") or len(name.encode()) > 255:
                raise PydanticCustomError(
                    "reserved_name",
                    "name {name!r} must have 1 to 255 bytes and not begin with 'amq.'",
                    {"name": name},
                )
        return value

    @property
    def password_variables(self) -> tuple[str, ...]:
        """Return the environment variables that hold passwords."""
        return tuple(user.password_env for user in self.users.values() if user.password_env is not None)
