"""Everything that a vhost holds, read for a plan or for adoption."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from unlost.broker import wire
from unlost.broker.management import Management
from unlost.errors import AccessRefused
from unlost.topology.objects import BrokerObject
from unlost.topology.plan import Live

# Read only if a topology declares them, because not every user may; operator policies always, because they
# are merged into what is in effect.
_ALWAYS = "operator policy"
_Reader = Callable[[Management], Iterable[BrokerObject]]


def live_of(management: Management, kinds: Collection[str] = ()) -> Live:
    """Return what a plan compares a topology with.

    What belongs to the broker itself (``amq.*``) or to one connection (exclusive queues) is left out.

    Args:
        management: The vhost.
        kinds: Kinds to read beyond exchanges, queues, bindings, policies and operator policies. What the
            user may not read is in ``unread``.

    Raises:
        BrokerError: The broker cannot be asked.
    """
    objects = list(_routing(management))
    unread: dict[str, str] = {}
    for kind, reader in _READERS.items():
        if kind in kinds or kind == _ALWAYS:
            try:
                objects.extend(reader(management))
            except AccessRefused as exc:
                unread[kind] = str(exc)
    return Live(tuple(objects), unread)


def _routing(management: Management) -> Iterable[BrokerObject]:
    for exchange in management.exchanges():
        if not _is_the_brokers(exchange.declared.name):
            yield exchange.declared
    queues = management.queues()
    exclusive = {("queue", each.declared.name) for each in queues if each.exclusive}
    yield from (each.declared for each in queues if not each.exclusive)
    for binding in management.bindings():
        if (binding.destination_type, binding.destination) not in exclusive:
            yield binding
    yield from management.policies()


def _is_the_brokers(exchange: str) -> bool:
    return not exchange or exchange.startswith("amq.")


def _vhost(management: Management) -> Iterable[BrokerObject]:
    found = management.ask(management.path("vhosts"))
    return () if found is None else (wire.vhost(found),)


def _each(path: Callable[[Management], str], read: Callable[[Mapping[str, Any]], BrokerObject]) -> _Reader:
    return lambda management: [read(each) for each in management.ask(path(management)) or ()]


_READERS: Mapping[str, _Reader] = {
    "vhost": _vhost,
    "operator policy": lambda management: management.operator_policies(),
    "user": _each(lambda _: "users", wire.user),
    "permission": _each(lambda management: f"{management.path('vhosts')}/permissions", wire.permission),
    "topic permission": _each(
        lambda management: f"{management.path('vhosts')}/topic-permissions", wire.topic_permission
    ),
    "parameter": lambda management: wire.parameters(management.ask("parameters") or [], management.vhost),
    "vhost limit": lambda management: wire.vhost_limits(
        management.ask(management.path("vhost-limits")) or [], management.vhost
    ),
    "user limit": lambda management: wire.user_limits(management.ask("user-limits") or []),
}
