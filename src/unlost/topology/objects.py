"""What a broker holds, as frozen values: what is declared, and what is read back, in the same terms.

Every object knows its ``kind`` and ``key``; the two identify it within a vhost. Two objects are compared
by :func:`same`, never by ``==``: Python takes ``True`` for ``1``, a broker does not.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias, cast

from unlost.topology import passwords

Value: TypeAlias = str | int | float | bool | list[Any] | dict[str, Any] | None
DestinationType = Literal["queue", "exchange"]
ApplyTo = Literal["all", "queues", "exchanges", "classic_queues", "quorum_queues", "streams"]
QueueType = Literal["classic", "quorum", "stream"]

QUEUE_TYPE_ARGUMENT = "x-queue-type"
_OF_TYPE: Mapping[str, str] = {"classic": "classic_queues", "quorum": "quorum_queues", "stream": "streams"}

# One key that a queue type does not know makes the whole policy inapplicable to it, and a policy of lower
# priority takes its place; found by setting every key on each type on 3.10, 4.0 and 4.3.
_STREAM_KEYS = frozenset({"max-age", "stream-max-segment-size-bytes", "initial-cluster-size"})
_MIRRORING = frozenset({"ha-mode", "ha-params", "ha-sync-mode", "queue-master-locator"})
_INAPPLICABLE: Mapping[str, frozenset[str]] = {
    "classic": _STREAM_KEYS | {"dead-letter-strategy", "delivery-limit", "target-group-size"},
    "quorum": _STREAM_KEYS | _MIRRORING | {"queue-mode"},
    "stream": _MIRRORING
    | {
        "dead-letter-exchange",
        "dead-letter-routing-key",
        "dead-letter-strategy",
        "delivery-limit",
        "expires",
        "max-in-memory-bytes",
        "max-in-memory-length",
        "max-length",
        "message-ttl",
        "overflow",
        "queue-mode",
        "target-group-size",
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vhost:
    """Metadata of the vhost itself; a value of ``None`` is left as it is."""

    kind: ClassVar[str] = "vhost"

    name: str = ""
    description: str | None = None
    tags: tuple[str, ...] | None = None
    default_queue_type: QueueType | None = None

    @property
    def key(self) -> str:
        """Return the empty string: a topology is about one vhost, whatever its name."""
        return ""

    def filled_in(self, there: Vhost) -> Vhost:
        """Return it with what it leaves open as it is there."""
        return Vhost(
            name=there.name,
            description=there.description if self.description is None else self.description,
            tags=there.tags if self.tags is None else self.tags,
            default_queue_type=self.default_queue_type or there.default_queue_type,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """An exchange; ours are durable and leave what they can to policies."""

    kind: ClassVar[str] = "exchange"

    name: str
    type: str = "topic"
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    arguments: Mapping[str, Value] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return what identifies it among exchanges."""
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue; ours are durable and their arguments are only what no policy can set."""

    kind: ClassVar[str] = "queue"

    name: str
    durable: bool = True
    auto_delete: bool = False
    arguments: Mapping[str, Value] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return what identifies it among queues."""
        return self.name

    @property
    def type(self) -> QueueType:
        """Return its type; one that names none is classic, unless its vhost's default says otherwise."""
        return cast("QueueType", self.arguments.get(QUEUE_TYPE_ARGUMENT, "classic"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A route from an exchange to a queue or to another exchange."""

    kind: ClassVar[str] = "binding"

    source: str
    destination: str
    destination_type: DestinationType = "queue"
    routing_key: str = ""
    arguments: Mapping[str, Value] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return what identifies it among bindings; all of a binding does."""
        arrow = "->" if self.destination_type == "queue" else "=>"
        arguments = f" {_canonical(dict(self.arguments))}" if self.arguments else ""
        return f"{self.source} {arrow} {self.destination} [{self.routing_key}]{arguments}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """Settings for every object whose name matches its pattern."""

    name: str
    pattern: str
    apply_to: ApplyTo
    definition: Mapping[str, Value] = field(default_factory=dict)
    priority: int = 0

    @property
    def key(self) -> str:
        """Return what identifies it among policies of its kind."""
        return self.name

    def governs(self, candidate: Exchange | Queue) -> bool:
        """Tell whether it can be in effect on an object: pattern, kind, and keys that the type knows."""
        if isinstance(candidate, Exchange):
            return self.apply_to in ("all", "exchanges") and self.matches(candidate.name)
        if self.apply_to not in ("all", "queues", _OF_TYPE.get(candidate.type)):
            return False
        return self.matches(candidate.name) and not self.inapplicable_keys(candidate.type)

    def matches(self, name: str) -> bool:
        """Tell whether its pattern matches a name; one that Python cannot read matches nothing."""
        compiled = _compiled(self.pattern)
        return compiled is not None and compiled.search(name) is not None

    def inapplicable_keys(self, queue_type: str) -> frozenset[str]:
        """Return its keys that keep it from any queue of a type."""
        return _INAPPLICABLE.get(queue_type, frozenset()) & self.definition.keys()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy(_Rule):
    """A user policy; at most one is in effect per object: the matching one of the highest priority."""

    kind: ClassVar[str] = "policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorPolicy(_Rule):
    """A guard rail of the broker's operator, merged with the user policy of an object."""

    kind: ClassVar[str] = "operator policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A user of the broker.

    Attributes:
        tags: What it may do in the management API: ``administrator``, ``monitoring``, ``policymaker``, ...
        password: As declared, never as read.
        password_hash: As read, or as declared; base64 of salt and digest.
        hashing_algorithm: Of the hash.
    """

    kind: ClassVar[str] = "user"

    name: str
    tags: tuple[str, ...] = ()
    password: str | None = field(default=None, repr=False)
    password_hash: str | None = field(default=None, repr=False)
    hashing_algorithm: str = "rabbit_password_hashing_sha256"

    @property
    def key(self) -> str:
        """Return what identifies it among users."""
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """What a user may do in this vhost: three regular expressions, the empty one for nothing."""

    kind: ClassVar[str] = "permission"

    user: str
    configure: str = "^$"
    write: str = "^$"
    read: str = "^$"

    @property
    def key(self) -> str:
        """Return what identifies it in this vhost."""
        return self.user


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicPermission:
    """Which routing keys a user may use on a topic exchange of this vhost."""

    kind: ClassVar[str] = "topic permission"

    user: str
    exchange: str
    write: str = "^$"
    read: str = "^$"

    @property
    def key(self) -> str:
        """Return what identifies it in this vhost."""
        return f"{self.user} on {self.exchange}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A runtime parameter of this vhost, such as a shovel or a federation upstream."""

    kind: ClassVar[str] = "parameter"

    component: str
    name: str
    value: Value = field(repr=False)

    @property
    def key(self) -> str:
        """Return what identifies it in this vhost."""
        return f"{self.component}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VhostLimit:
    """A limit of this vhost: ``max-connections`` or ``max-queues``; -1 is none."""

    kind: ClassVar[str] = "vhost limit"

    name: str
    value: int

    @property
    def key(self) -> str:
        """Return what identifies it in this vhost."""
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class UserLimit:
    """A limit of a user: ``max-connections`` or ``max-channels``; -1 is none."""

    kind: ClassVar[str] = "user limit"

    user: str
    name: str
    value: int

    @property
    def key(self) -> str:
        """Return what identifies it on the broker."""
        return f"{self.user}/{self.name}"


BrokerObject = (
    Vhost
    | Exchange
    | Queue
    | Binding
    | Policy
    | OperatorPolicy
    | User
    | Permission
    | TopicPermission
    | Parameter
    | VhostLimit
    | UserLimit
)


def identity(each: BrokerObject) -> tuple[str, str]:
    """Return what identifies an object within its vhost."""
    return each.kind, each.key


def content(each: BrokerObject) -> dict[str, Any]:
    """Return what an object says, as plain values, without any secret; a queue's type is always named."""
    said = asdict(each)
    if isinstance(each, Queue):
        said["arguments"] = {QUEUE_TYPE_ARGUMENT: "classic", **each.arguments}
    if isinstance(each, User):
        said["tags"] = sorted(each.tags)
        del said["password"], said["password_hash"], said["hashing_algorithm"]
    return said


def shown(each: BrokerObject) -> dict[str, Any]:
    """Return what may be shown of an object: the value of a parameter can hold the password of a URL."""
    said = content(each)
    if isinstance(each, Parameter):
        said["value"] = "(not shown)"
    return said


def same(one: BrokerObject, other: BrokerObject) -> bool:
    """Tell whether two objects say the same; symmetric, and strict about types: ``1`` is not ``true``."""
    return one.kind == other.kind and not differences(one, other)


def differences(declared: BrokerObject, live: BrokerObject) -> list[tuple[str, Any, Any]]:
    """Return each property that differs, as (name, declared, live); settings of a mapping one by one."""
    ours, theirs = flat(content(declared)), flat(content(live))
    if isinstance(declared, Vhost) and isinstance(live, Vhost):
        ours, theirs = _both_said(ours, theirs)
    if isinstance(declared, User) and isinstance(live, User) and not _same_password(declared, live):
        ours, theirs = {**ours, "password": "(declared)"}, {**theirs, "password": "(another)"}
    secret = isinstance(declared, Parameter)
    return [
        (name, *(("(declared)", "(another)") if secret else (ours.get(name), theirs.get(name))))
        for name in sorted(ours.keys() | theirs.keys())
        if _canonical(ours.get(name)) != _canonical(theirs.get(name))
    ]


def flat(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of arguments and definitions beside the other properties."""
    out: dict[str, Any] = {}
    for name, value in said.items():
        if name in ("arguments", "definition"):
            out.update({f"{name}.{key}": each for key, each in value.items()})
        else:
            out[name] = list(value) if isinstance(value, tuple) else value
    return out


def _both_said(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Leave out what one of the two leaves open, and the name, which is the connection's business."""
    said = {key for key in ours if key != "name" and None not in (ours[key], theirs.get(key))}
    return {key: ours[key] for key in said}, {key: theirs[key] for key in said}


def _same_password(one: User, other: User) -> bool:
    """Tell whether two passwords can be the same; one that is not declared is whatever the broker has."""
    for this, that in ((one, other), (other, one)):
        if this.password is not None and that.password is not None:
            return this.password == that.password
        if this.password is not None and that.password_hash is not None:
            return passwords.matches(this.password, that.password_hash, that.hashing_algorithm)
    if one.password_hash is None or other.password_hash is None:
        return True
    return one.password_hash == other.password_hash


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


# A memo of a pure function; re's own holds 512, fewer than the policies of a large broker.
@functools.lru_cache(maxsize=8192)
def _compiled(pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern)
    except re.error:
        return None
