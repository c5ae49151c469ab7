"""Bring a broker to a declared topology, and see that it took effect."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType

from unlost.broker.guards import refuse_loss
from unlost.broker.inventory import live_of
from unlost.broker.management import ExchangeStatus, Management, QueueStatus
from unlost.errors import AccessRefused, TopologyError
from unlost.topology.effective import Rules
from unlost.topology.expand import Expanded, Version, expand
from unlost.topology.model import Topology
from unlost.topology.objects import Exchange, Policy, Queue
from unlost.topology.plan import Plan, Step, plan, refuse_other_levels

_LOOK_AGAIN_AFTER = timedelta(milliseconds=100)
_NO_SECRETS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Applied:
    """What an apply did.

    Attributes:
        version: Major and minor version of the broker.
        steps: The changes it made, in order; empty if everything was in place.
        unchanged: How many objects were in place already.
        withheld: The changes that it did not make, because they need a flag.
    """

    version: Version
    steps: tuple[Step, ...]
    unchanged: int
    withheld: tuple[Step, ...] = ()

    @property
    def changed(self) -> int:
        """Return how many objects were changed."""
        return len(self.steps)


def compare(topology: Topology, management: Management, secrets: Mapping[str, str] = _NO_SECRETS) -> Plan:
    """Return every difference between a topology and a broker, without changing anything.

    Args:
        topology: What shall be there.
        management: The vhost where it shall be.
        secrets: Passwords of declared users, by the variable that holds them.

    Raises:
        TopologyError: The broker is too old, or its delay path has another number of levels.
        BrokerError: The broker cannot be asked.
    """
    return _compare(topology, expand(topology, management.version(), secrets), management)


def pending(topology: Topology, management: Management) -> tuple[Step, ...]:
    """Return the steps that :func:`apply` would take without any flag, without taking them.

    Raises:
        DeclarationConflict: An exchange or queue exists with other immutable properties.
        TopologyError: The broker is too old, or its delay path has another number of levels.
        BrokerError: The broker cannot be asked.
    """
    found = compare(topology, management)
    found.refuse_immutable()
    return found.allowed()


def apply(
    topology: Topology,
    management: Management,
    on_step: Callable[[Step], None] | None = None,
    *,
    patience: timedelta = timedelta(seconds=30),
    allow_unbind: bool = False,
    allow_destroy: bool = False,
    secrets: Mapping[str, str] = _NO_SECRETS,
) -> Applied:
    """Create what is missing, change what differs, and wait until all of it is in effect.

    Everything is compared before the first change, so no conflict is discovered halfway. Every change is one
    idempotent request, so two applies of the same topology at once do no harm. A crash in between leaves a
    prefix of the steps, in whose order no queue is without its policy and no dead letter without a queue;
    apply again to finish. A second apply changes nothing.

    Args:
        topology: What shall be there.
        management: The vhost where it shall be.
        on_step: Called after each change.
        patience: How long to wait for leaders and for policies to take effect.
        allow_unbind: Also remove bindings between declared objects that are not declared.
        allow_destroy: Also take destructive steps; each is refused while messages that it would cost are
            inside.
        secrets: Passwords of declared users, by the variable that holds them.

    Raises:
        DeclarationConflict: An exchange or queue exists with other immutable properties.
        TopologyError: As for :func:`compare`; or a destructive step would cost messages; or not all of it
            took effect within the patience.
        BrokerError: The broker cannot be asked, or refuses a change.
    """
    version = management.version()
    expanded = expand(topology, version, secrets)
    found = _compare(topology, expanded, management)
    _refuse_unread(found)
    found.refuse_immutable()
    steps = found.allowed(unbind=allow_unbind, destroy=allow_destroy)
    for step in steps:
        refuse_loss(step, management)
        _take(step, management)
        if on_step is not None:
            on_step(step)
    withheld = found.withheld(unbind=allow_unbind, destroy=allow_destroy)
    # A policy that was not allowed to change cannot come into effect.
    held_back = {step.object.key for step in withheld if isinstance(step.object, Policy)}
    _wait_until_in_effect(expanded, management, patience, held_back)
    return Applied(version=version, steps=steps, unchanged=found.unchanged, withheld=withheld)


def _take(step: Step, management: Management) -> None:
    if step.deletes:
        management.delete(step.object)
    else:
        management.put(step.object)


def _compare(topology: Topology, expanded: Expanded, management: Management) -> Plan:
    live = live_of(management, {each.kind for each in expanded.objects})
    refuse_other_levels(topology, expanded, live.objects)
    return plan(expanded, live)


def _refuse_unread(found: Plan) -> None:
    """Refuse to apply what cannot be read; operator policies are read for the plan's sake only."""
    declared = [reason for kind, reason in found.unread.items() if kind != "operator policy"]
    if declared:
        raise AccessRefused(f"the topology declares what this user may not read: {'; '.join(declared)}")


def _wait_until_in_effect(
    expanded: Expanded, management: Management, patience: timedelta, held_back: set[str]
) -> None:
    """Read until every queue has a leader and its policy, both of which come a moment after the request."""
    deadline = time.monotonic() + patience.total_seconds()
    while problems := list(not_in_effect(expanded, management, held_back)):
        if time.monotonic() > deadline:
            raise TopologyError(
                f"not in effect after {patience}: {'; '.join(problems[:3])} ({len(problems)} in all)"
            )
        time.sleep(_LOOK_AGAIN_AFTER.total_seconds())


def not_in_effect(
    expanded: Expanded, management: Management, held_back: Container[str] = ()
) -> Iterator[str]:
    """Yield one sentence for each declared queue or exchange that is not as declared right now.

    Args:
        expanded: What is declared.
        management: Where it should be.
        held_back: Names of policies that are known not to be as declared.
    """
    queues = {status.declared.name: status for status in management.queues()}
    exchanges = {status.declared.name: status for status in management.exchanges()}
    rules = Rules(policy for policy in expanded.policies)
    declared: list[Queue | Exchange] = [*expanded.queues, *expanded.exchanges]
    for each in declared:
        policy = next(iter(rules.matching(each)), None)
        if policy is not None and policy.name in held_back:
            policy = None
        if isinstance(each, Queue):
            yield from _problems_of_queue(each, queues.get(each.name), policy)
        else:
            yield from _problems_of_exchange(each, exchanges.get(each.name), policy)


def _problems_of_queue(queue: Queue, status: QueueStatus | None, policy: Policy | None) -> Iterator[str]:
    if status is None:
        yield f"queue {queue.name!r} is missing"
        return
    led = status.leader is not None or queue.type == "classic"
    if not led or status.state != "running":
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
