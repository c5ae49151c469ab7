"""A topology as ``definitions.json``, which RabbitMQ imports at boot.

https://www.rabbitmq.com/docs/definitions. An import never changes or deletes what is there, skips queues that
exist without comparing them, and tells nobody: use it for a fresh broker, and ``apply`` for any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from unlost.topology import passwords
from unlost.topology.objects import (
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

_SECTIONS = (
    "users",
    "vhosts",
    "permissions",
    "topic_permissions",
    "parameters",
    "global_parameters",
    "policies",
    "queues",
    "exchanges",
    "bindings",
)


def definitions_of(
    objects: Iterable[BrokerObject], vhost: str, new_salt: Callable[[], bytes]
) -> dict[str, Any]:
    """Return the definitions of objects, to be written as JSON.

    Args:
        objects: What is declared.
        vhost: The vhost that holds them; it is defined, too.
        new_salt: Returns four random bytes for each password.

    Raises:
        TopologyError: A salt is not of four bytes.
    """
    everything = tuple(objects)
    out: dict[str, Any] = {name: [] for name in _SECTIONS}
    out["vhosts"].append(_vhost(vhost, everything))
    for each in everything:
        if isinstance(each, Binding | Exchange | Queue | Policy | Permission | TopicPermission):
            section, said = _of_vhost(each)
            out[section].append({"vhost": vhost, **said})
        elif isinstance(each, User):
            out["users"].append(_user(each, everything, new_salt))
        elif isinstance(each, OperatorPolicy):
            out["parameters"].append(_parameter(vhost, "operator_policy", each.name, _rule(each)))
        elif isinstance(each, Parameter):
            out["parameters"].append(_parameter(vhost, each.component, each.name, each.value))
    limits = {each.name: each.value for each in everything if isinstance(each, VhostLimit)}
    if limits:
        out["parameters"].append(_parameter(vhost, "vhost-limits", "limits", limits))
    return out


def _of_vhost(
    each: Binding | Exchange | Queue | Policy | Permission | TopicPermission,
) -> tuple[str, dict[str, Any]]:
    match each:
        case Exchange():
            return "exchanges", {
                "name": each.name,
                "type": each.type,
                "durable": each.durable,
                "auto_delete": each.auto_delete,
                "internal": each.internal,
                "arguments": dict(each.arguments),
            }
        case Queue():
            return "queues", {
                "name": each.name,
                "durable": each.durable,
                "auto_delete": each.auto_delete,
                "arguments": dict(each.arguments),
            }
        case Binding():
            return "bindings", {
                "source": each.source,
                "destination": each.destination,
                "destination_type": each.destination_type,
                "routing_key": each.routing_key,
                "arguments": dict(each.arguments),
            }
        case Policy():
            return "policies", {"name": each.name, **_rule(each)}
        case Permission():
            said = {"configure": each.configure, "write": each.write, "read": each.read}
            return "permissions", {"user": each.user, **said}
        case TopicPermission():
            said = {"exchange": each.exchange, "write": each.write, "read": each.read}
            return "topic_permissions", {"user": each.user, **said}


def _rule(each: Policy | OperatorPolicy) -> dict[str, Any]:
    return {
        "pattern": each.pattern,
        "apply-to": each.apply_to,
        "priority": each.priority,
        "definition": dict(each.definition),
    }


def _parameter(vhost: str, component: str, name: str, value: object) -> dict[str, Any]:
    return {"vhost": vhost, "component": component, "name": name, "value": value}


def _vhost(name: str, objects: tuple[BrokerObject, ...]) -> dict[str, Any]:
    said = next((each for each in objects if isinstance(each, Vhost)), Vhost())
    metadata: dict[str, Any] = {
        "description": said.description or "",
        "tags": list(said.tags or ()),
    }
    if said.default_queue_type is not None:
        metadata["default_queue_type"] = said.default_queue_type
    return {"name": name, "metadata": metadata}


def _user(user: User, objects: tuple[BrokerObject, ...], new_salt: Callable[[], bytes]) -> dict[str, Any]:
    hashed = user.password_hash or ""
    if user.password is not None:
        hashed = passwords.hash_password(user.password, new_salt(), user.hashing_algorithm)
    limits = {
        each.name: each.value for each in objects if isinstance(each, UserLimit) and each.user == user.name
    }
    return {
        "name": user.name,
        "password_hash": hashed,
        "hashing_algorithm": user.hashing_algorithm,
        "tags": list(user.tags),
        "limits": limits,
    }
