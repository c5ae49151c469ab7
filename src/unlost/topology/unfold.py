"""From the full form to the values that a broker holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from unlost.topology.full_form import ExchangeForm, Objects, PolicyForm, UserForm
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


def surroundings_of(objects: Objects, secrets: Mapping[str, str]) -> Iterator[BrokerObject]:
    """Yield the vhost, users, permissions, limits, guard rails and parameters: what the rest lives in."""
    vhost = objects.vhost
    if (vhost.description, vhost.tags, vhost.default_queue_type) != (None, None, None):
        yield Vhost(
            description=vhost.description, tags=vhost.tags, default_queue_type=vhost.default_queue_type
        )
    for limit, most in vhost.limits.items():
        yield VhostLimit(name=limit, value=most)
    for name, form in objects.users.items():
        yield _user(name, form, secrets)
        for kind, most in form.limits.items():
            yield UserLimit(user=name, name=kind, value=most)
    for user, permission in objects.permissions.items():
        yield Permission(
            user=user, configure=permission.configure, write=permission.write, read=permission.read
        )
    for user, exchanges in objects.topic_permissions.items():
        for exchange, topic in exchanges.items():
            yield TopicPermission(user=user, exchange=exchange, write=topic.write, read=topic.read)
    for name, rule in objects.operator_policies.items():
        yield OperatorPolicy(name=name, **_rule(rule))
    for component, values in objects.parameters.items():
        for parameter, value in values.items():
            yield Parameter(component=component, name=parameter, value=value)


def routing_of(objects: Objects) -> Iterator[Exchange | Queue | Binding | Policy]:
    """Yield policies, exchanges, queues and bindings, as declared."""
    default_type = objects.vhost.default_queue_type or "classic"
    for name, rule in objects.policies.items():
        yield Policy(name=name, **_rule(rule))
    for name, exchange in objects.exchanges.items():
        yield _exchange(name, exchange)
    for name, queue in objects.queues.items():
        yield queue.to_queue(name, default_type)
    for binding in objects.bindings:
        yield Binding(
            source=binding.source,
            destination=binding.destination,
            destination_type=binding.destination_type,
            routing_key=binding.routing_key,
            arguments=dict(binding.arguments),
        )


def _rule(form: PolicyForm) -> dict[str, Any]:
    return {
        "pattern": form.pattern,
        "apply_to": form.apply_to,
        "priority": form.priority,
        "definition": dict(form.definition),
    }


def _user(name: str, form: UserForm, secrets: Mapping[str, str]) -> User:
    return User(
        name=name,
        tags=form.tags,
        password=secrets.get(form.password_env) if form.password_env is not None else None,
        password_hash=form.password_hash,
        hashing_algorithm=form.hashing_algorithm,
    )


def _exchange(name: str, form: ExchangeForm) -> Exchange:
    arguments = dict(form.arguments)
    if form.alternate_exchange is not None:
        arguments["alternate-exchange"] = form.alternate_exchange
    return Exchange(
        name=name,
        type=form.type,
        durable=form.durable,
        auto_delete=form.auto_delete,
        internal=form.internal,
        arguments=arguments,
    )
