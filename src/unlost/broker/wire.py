"""How objects look in the management API: where each is, what is sent, and how an answer is read.

Pure; paths and fields: https://www.rabbitmq.com/docs/http-api-reference.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from unlost.topology import passwords
from unlost.topology.objects import (
    QUEUE_TYPE_ARGUMENT,
    Binding,
    BrokerObject,
    Exchange,
    OperatorPolicy,
    Parameter,
    Permission,
    Policy,
    Queue,
    TopicPermission,
    User,
    UserLimit,
    Vhost,
    VhostLimit,
)

# Parameters that have endpoints, and kinds, of their own.
_OTHER_KINDS = frozenset({"policy", "operator_policy", "vhost-limits"})


def path_of(each: BrokerObject, vhost: str) -> str:
    """Return the path that creates and deletes an object; for a binding, that of its two ends."""
    match each:
        case Vhost():
            return _path("vhosts", vhost)
        case Exchange():
            return _path("exchanges", vhost, each.name)
        case Queue():
            return _path("queues", vhost, each.name)
        case Binding():
            return _path("bindings", vhost, "e", each.source, each.destination_type[0], each.destination)
        case Policy():
            return _path("policies", vhost, each.name)
        case OperatorPolicy():
            return _path("operator-policies", vhost, each.name)
        case User():
            return _path("users", each.name)
        case Permission():
            return _path("permissions", vhost, each.user)
        case TopicPermission():
            return _path("topic-permissions", vhost, each.user)
        case Parameter():
            return _path("parameters", each.component, vhost, each.name)
        case VhostLimit():
            return _path("vhost-limits", vhost, each.name)
        case UserLimit():
            return _path("user-limits", each.user, each.name)


def body_of(each: BrokerObject) -> dict[str, Any]:
    """Return what is sent to create an object. What a vhost or user leaves open must be filled in before."""
    match each:
        case Vhost():
            said = {"description": each.description, "default_queue_type": each.default_queue_type}
            tags = {} if each.tags is None else {"tags": ",".join(each.tags)}
            return {**{key: value for key, value in said.items() if value is not None}, **tags}
        case Exchange():
            return {
                "type": each.type,
                "durable": each.durable,
                "auto_delete": each.auto_delete,
                "internal": each.internal,
                "arguments": dict(each.arguments),
            }
        case Queue():
            return {
                "durable": each.durable,
                "auto_delete": each.auto_delete,
                "arguments": dict(each.arguments),
            }
        case Binding():
            return {"routing_key": each.routing_key, "arguments": dict(each.arguments)}
        case Policy() | OperatorPolicy():
            return {
                "pattern": each.pattern,
                "apply-to": each.apply_to,
                "definition": dict(each.definition),
                "priority": each.priority,
            }
        case User():
            return _user_body(each)
        case Permission():
            return {"configure": each.configure, "write": each.write, "read": each.read}
        case TopicPermission():
            return {"exchange": each.exchange, "write": each.write, "read": each.read}
        case Parameter() | VhostLimit() | UserLimit():
            return {"value": each.value}


def _user_body(user: User) -> dict[str, Any]:
    """Return a user with the hash of its password: the password itself is never sent."""
    hashed = user.password_hash or ""
    if user.password is not None:
        hashed = passwords.hash_password(user.password, secrets.token_bytes(4), user.hashing_algorithm)
    return {
        "password_hash": hashed,
        "hashing_algorithm": user.hashing_algorithm,
        "tags": ",".join(user.tags),
    }


def exchange(found: Mapping[str, Any]) -> Exchange:
    """Read an exchange."""
    return Exchange(
        name=found["name"],
        type=found["type"],
        durable=found["durable"],
        auto_delete=found["auto_delete"],
        internal=found["internal"],
        arguments=found["arguments"],
    )


def queue(found: Mapping[str, Any]) -> Queue:
    """Read a queue; its type is named even if its declaration did not."""
    arguments = found["arguments"]
    if QUEUE_TYPE_ARGUMENT not in arguments and found.get("type", "classic") != "classic":
        arguments = {QUEUE_TYPE_ARGUMENT: found["type"], **arguments}
    return Queue(
        name=found["name"],
        durable=found["durable"],
        auto_delete=found["auto_delete"],
        arguments=arguments,
    )


def binding(found: Mapping[str, Any]) -> Binding:
    """Read a binding."""
    return Binding(
        source=found["source"],
        destination=found["destination"],
        destination_type=found["destination_type"],
        routing_key=found["routing_key"],
        arguments=found["arguments"],
    )


def policy(found: Mapping[str, Any]) -> Policy:
    """Read a user policy."""
    return Policy(**_rule(found))


def operator_policy(found: Mapping[str, Any]) -> OperatorPolicy:
    """Read an operator policy."""
    return OperatorPolicy(**_rule(found))


def _rule(found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": found["name"],
        "pattern": found["pattern"],
        "apply_to": found["apply-to"],
        "definition": found["definition"],
        "priority": found["priority"],
    }


def vhost(found: Mapping[str, Any]) -> Vhost:
    """Read a vhost's metadata; an unset default queue type is shown as ``undefined`` by older brokers."""
    default = found.get("default_queue_type")
    return Vhost(
        name=found["name"],
        description=found.get("description") or "",
        tags=tuple(found.get("tags") or ()),
        default_queue_type=default if default in ("classic", "quorum", "stream") else None,
    )


def user(found: Mapping[str, Any]) -> User:
    """Read a user with the hash of its password."""
    tags = found["tags"]
    return User(
        name=found["name"],
        tags=tuple(tags.split(",") if isinstance(tags, str) else tags),
        password_hash=found["password_hash"],
        hashing_algorithm=found["hashing_algorithm"],
    )


def permission(found: Mapping[str, Any]) -> Permission:
    """Read a permission."""
    return Permission(
        user=found["user"], configure=found["configure"], write=found["write"], read=found["read"]
    )


def topic_permission(found: Mapping[str, Any]) -> TopicPermission:
    """Read a topic permission."""
    return TopicPermission(
        user=found["user"], exchange=found["exchange"], write=found["write"], read=found["read"]
    )


def parameters(found: list[Mapping[str, Any]], vhost_name: str) -> Iterator[Parameter]:
    """Read the parameters of a vhost that are no other kind's."""
    for each in found:
        if each["vhost"] == vhost_name and each["component"] not in _OTHER_KINDS:
            yield Parameter(component=each["component"], name=each["name"], value=each["value"])


def vhost_limits(found: list[Mapping[str, Any]], vhost_name: str) -> Iterator[VhostLimit]:
    """Read the limits of a vhost."""
    for each in found:
        if each["vhost"] == vhost_name:
            for name, value in each["value"].items():
                yield VhostLimit(name=name, value=value)


def user_limits(found: list[Mapping[str, Any]]) -> Iterator[UserLimit]:
    """Read the limits of all users."""
    for each in found:
        for name, value in each["value"].items():
            yield UserLimit(user=each["user"], name=name, value=value)


def _path(kind: str, *names: str) -> str:
    return "/".join((kind, *(quote(name, safe="") for name in names)))
