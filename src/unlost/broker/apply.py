"""Bring a broker to a declared topology, and see that it took effect."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from unlost.broker.management import ExchangeStatus, Management, QueueStatus
from unlost.errors import TopologyError
from unlost.topology.expand import Expanded, Version, expand
from unlost.topology.model import Topology
from unlost.topology.objects import Exchange, Policy, Queue
from unlost.topology.plan import Step, plan, refuse_other_levels

_LOOK_AGAIN_AFTER = timedelta(milliseconds=100)


@dataclass(frozen=True, slots=True)
class Applied:
    """What an apply did.

    Attributes:
        version: Major and minor version of the broker.
        steps: The changes it made, in order; empty if everything was in place.
        unchanged: How many objects were in place already.
    """

    version: Version
    steps: tuple[Step, ...]
    unchanged: int

    @property
    def changed(self) -> int:
        """Return how many objects were created or updated."""
        return len(self.steps)


def pending(topology: Topology, management: Management) -> tuple[Step, ...]:
    """Return the steps that :func:`apply` would take, without taking them.

    Raises:
        DeclarationConflict: An exchange or queue exists with other immutable properties.
        TopologyError: The broker is too old, or its delay path has another number of levels.
        BrokerError: The broker cannot be asked.
    """
    return _pending(topology, expand(topology, management.version()), management)


def apply(
    topology: Topology,
    management: Management,
    on_step: Callable[[Step], None] | None = None,
    *,
    patience: timedelta = timedelta(seconds=30),
) -> Applied:
    """Create what is missing, update what differs, and wait until all of it is in effect.

    Nothing is ever deleted, and no conflict is discovered halfway: everything is compared before the first
    change. A crash in between leaves a prefix of the steps, in whose order no queue is without its policy
    and no dead letter without a queue; apply again to finish. A second apply changes nothing.

    Args:
        topology: What shall be there.
        management: The vhost where it shall be.
        on_step: Called after each change.
        patience: How long to wait for leaders and for policies to take effect.

    Raises:
        DeclarationConflict: An exchange or queue exists with other immutable properties.
        TopologyError: As for :func:`pending`, or not all of it took effect within the patience.
        BrokerError: The broker cannot be asked, or refuses a change.
    """
    version = management.version()
    expanded = expand(topology, version)
    steps = _pending(topology, expanded, management)
    for step in steps:
        management.put(step.object)
        if on_step is not None:
            on_step(step)
    _wait_until_in_effect(expanded, management, patience)
    return Applied(version=version, steps=steps, unchanged=len(expanded.objects) - len(steps))


def _pending(topology: Topology, expanded: Expanded, management: Management) -> tuple[Step, ...]:
    present = management.objects()
    refuse_other_levels(topology, expanded, present)
    return plan(expanded, present)


def _wait_until_in_effect(expanded: Expanded, management: Management, patience: timedelta) -> None:
    """Read until every queue has a leader and its policy, both of which come a moment after the request."""
    deadline = time.monotonic() + patience.total_seconds()
    while problems := list(_not_in_effect(expanded, management)):
        if time.monotonic() > deadline:
            raise TopologyError(
                f"not in effect after {patience}: {'; '.join(problems[:3])} ({len(problems)} in all)"
            )
        time.sleep(_LOOK_AGAIN_AFTER.total_seconds())


def _not_in_effect(expanded: Expanded, management: Management) -> Iterator[str]:
    queues = {status.declared.name: status for status in management.queues()}
    for queue in expanded.queues:
        yield from _problems_of_queue(queue, queues.get(queue.name), expanded.policy_of(queue))
    exchanges = {status.declared.name: status for status in management.exchanges()}
    for exchange in expanded.exchanges:
        yield from _problems_of_exchange(exchange, exchanges.get(exchange.name), expanded.policy_of(exchange))


def _problems_of_queue(queue: Queue, status: QueueStatus | None, policy: Policy | None) -> Iterator[str]:
    if status is None:
        yield f"queue {queue.name!r} is missing"
        return
    if status.leader is None or status.state != "running":
        yield f"queue {queue.name!r} is {status.state} with leader {status.leader}; are enough nodes up?"
    if policy is not None:
        yield from _problems_of_policy(policy, status)


def _problems_of_policy(policy: Policy, status: QueueStatus) -> Iterator[str]:
    name = status.declared.name
    if status.policy != policy.name:
        yield _governed_by_another("queue", name, status.policy, policy)
        return
    if status.effective_policy is None:  # an older broker: that it is our policy is all that can be seen
        return
    for key, wanted in policy.definition.items():
        found = status.effective_policy.get(key)
        if found != wanted:
            yield f"queue {name!r} has {key}={found!r} instead of {wanted!r}; is there an operator policy?"


def _problems_of_exchange(
    exchange: Exchange, status: ExchangeStatus | None, policy: Policy | None
) -> Iterator[str]:
    if status is None:
        yield f"exchange {exchange.name!r} is missing"
    elif policy is not None and status.policy != policy.name:
        yield _governed_by_another("exchange", exchange.name, status.policy, policy)


def _governed_by_another(kind: str, name: str, found: str | None, wanted: Policy) -> str:
    return (
        f"{kind} {name!r} is governed by policy {found!r} instead of {wanted.name!r}: "
        f"give that one a priority below {wanted.priority}, or a pattern that does not match"
    )
