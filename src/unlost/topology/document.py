"""From live objects to the full form: what would declare them. The reverse of ``unfold``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import yaml
from pydantic import TypeAdapter

from unlost.topology.full_form import BindingForm, ExchangeForm, PermissionForm, PolicyForm
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
from unlost.topology.queue_forms import form_of

_DURATION = TypeAdapter(timedelta)


def document_of(objects: Iterable[BrokerObject]) -> dict[str, Any]:
    """Return the document that declares objects, as plain values; what is default is left out.

    Args:
        objects: As read from a broker. Users come with the hashes of their passwords.
    """
    sections: dict[str, Any] = {}
    for each in objects:
        _add(each, sections)
    return {"objects": _plain(sections)}


def to_yaml(document: dict[str, Any], comment: str = "") -> str:
    """Return a document as YAML, its keys in their own order."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)


def _add(each: BrokerObject, sections: dict[str, Any]) -> None:
    match each:
        case Vhost():
            said = {
                "description": each.description or None,
                "tags": list(each.tags or ()) or None,
                "default_queue_type": each.default_queue_type,
            }
            _section(sections, "vhost").update({k: v for k, v in said.items() if v is not None})
        case VhostLimit():
            _section(sections, "vhost", "limits")[each.name] = each.value
        case Exchange():
            _section(sections, "exchanges")[each.name] = _exchange(each)
        case Queue():
            _section(sections, "queues")[each.name] = form_of(each)
        case Binding():
            form = BindingForm(
                source=each.source,
                destination=each.destination,
                destination_type=each.destination_type,
                routing_key=each.routing_key,
                arguments=each.arguments,
            )
            sections.setdefault("bindings", []).append(form.model_dump(exclude_defaults=True))
        case Policy() | OperatorPolicy():
            kind = "policies" if isinstance(each, Policy) else "operator_policies"
            _section(sections, kind)[each.name] = PolicyForm(
                pattern=each.pattern,
                apply_to=each.apply_to,
                priority=each.priority,
                definition=each.definition,
            ).model_dump()
        case User():
            _section(sections, "users").setdefault(each.name, {}).update(_user(each))
        case UserLimit():
            _section(sections, "users", each.user, "limits")[each.name] = each.value
        case Permission():
            form_ = PermissionForm(configure=each.configure, write=each.write, read=each.read)
            _section(sections, "permissions")[each.user] = form_.model_dump()
        case TopicPermission():
            of_user = _section(sections, "topic_permissions", each.user)
            of_user[each.exchange] = {"write": each.write, "read": each.read}
        case Parameter():
            _section(sections, "parameters", each.component)[each.name] = each.value


def _exchange(each: Exchange) -> dict[str, Any]:
    arguments = dict(each.arguments)
    alternate = arguments.pop("alternate-exchange", None)
    form = ExchangeForm(
        type=each.type,
        durable=each.durable,
        auto_delete=each.auto_delete,
        internal=each.internal,
        alternate_exchange=None if alternate is None else str(alternate),
        arguments=arguments,
    )
    return {"type": each.type, **form.model_dump(exclude_defaults=True)}


def _user(each: User) -> dict[str, Any]:
    said: dict[str, Any] = {"tags": list(each.tags)}
    if each.password_hash:
        said["password_hash"] = each.password_hash
        said["hashing_algorithm"] = each.hashing_algorithm
    return said


def _section(sections: dict[str, Any], *path: str) -> dict[str, Any]:
    for part in path:
        sections = sections.setdefault(part, {})
    return sections


def _plain(value: Any) -> Any:
    """Return a value as YAML can hold it; durations as ISO 8601."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, timedelta):
        return _DURATION.dump_python(value, mode="json")
    return value
