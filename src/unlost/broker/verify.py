"""Look at what a running broker makes of a topology: members, leaders, policies, alarms, permissions."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

import httpx

from unlost.broker.apply import not_in_effect
from unlost.broker.management import Management, QueueStatus
from unlost.errors import AccessRefused
from unlost.topology import naming
from unlost.topology.expand import Expanded, expand
from unlost.topology.model import Topology

_DROPPED = re.compile(
    r"^(rabbitmq_global_messages_dead_lettered_\w+_total)"
    r'\{.*dead_letter_strategy="disabled".*\} ([0-9.e+]+)$',
    re.MULTILINE,
)
_UNLIMITED = ("unlimited", -1, None)

#: What is due to be dead-lettered goes at once; the broker tells its statistics every five seconds.
STALL = timedelta(seconds=20)
LOOK_AGAIN = timedelta(seconds=1)


class Verdict(StrEnum):
    """What a look came to."""

    OK = "ok"
    FOUND = "found"
    UNKNOWN = "unknown"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a running system.

    Attributes:
        what: What was looked at, in one or two words.
        verdict: ``skipped`` if this broker cannot tell, or was not asked.
        says: What was found, in one sentence.
    """

    what: str
    verdict: Verdict
    says: str


def verify(
    topology: Topology, management: Management, *, worker: str | None = None, metrics_url: str | None = None
) -> list[Look]:
    """Return what a running broker makes of a topology. Changes nothing.

    Args:
        topology: What is declared.
        management: The vhost where it should be.
        worker: The user whose permissions to check; ``None`` checks none.
        metrics_url: Where the broker's Prometheus metrics are, for the letters that it dropped.

    Raises:
        BrokerUnavailable: The broker cannot be asked at all.
        AccessRefused: This user may not read queues and policies.
    """
    expanded = expand(topology, management.version())
    looks = [*_members(expanded, management), *_effect(expanded, management)]
    looks.append(_timeouts(topology, expanded))
    for what, look in (
        ("alarms", _alarms),
        ("feature flags", _flags),
        ("deprecated features", _deprecated),
    ):
        looks.append(_or_refused(what, look, management))
    looks.append(_machines(expanded, management))
    looks.append(_passing_on(expanded, management))
    looks.append(_permissions(topology, management, worker))
    looks.append(_dropped(metrics_url))
    return looks


def _members(expanded: Expanded, management: Management) -> Iterator[Look]:
    statuses = {each.declared.name: each for each in management.queues()}
    bad = [
        problem
        for queue in expanded.queues
        for problem in _problems_of_members(queue.name, statuses.get(queue.name))
    ]
    fine = f"{len(expanded.queues)} queues have their leader and all members online"
    yield _look("queue members", bad, fine)
    wrong = [
        f"{queue.name!r} has a delivery limit of {status.delivery_limit}"
        for queue in expanded.queues
        if (status := statuses.get(queue.name)) is not None
        and (policy := expanded.policy_of(queue)) is not None
        and policy.definition.get("delivery-limit") == -1
        and status.delivery_limit not in _UNLIMITED
    ]
    yield _look("delivery limits", wrong, "no queue limits deliveries that should not")


def _problems_of_members(name: str, status: QueueStatus | None) -> Iterator[str]:
    if status is None:
        yield f"queue {name!r} is missing"
        return
    if status.declared.type == "quorum" and status.leader is None:
        yield f"queue {name!r} has no leader"
    down = sorted(set(status.members) - set(status.online))
    if down:
        yield f"queue {name!r} has members offline: {', '.join(down)}"
    if status.state != "running":
        yield f"queue {name!r} is {status.state}"


def _effect(expanded: Expanded, management: Management) -> Iterator[Look]:
    problems = list(not_in_effect(expanded, management))
    yield _look("effective policies", problems, "every policy is in effect as declared")


def _timeouts(topology: Topology, expanded: Expanded) -> Look:
    """Compare what the broker allows a delivery to take with what its slowest task may take."""
    bad = []
    for queue in expanded.queues:
        declared = topology.queues.get(queue.name)
        policy = expanded.policy_of(queue)
        allowed = policy.definition.get("consumer-timeout") if policy else None
        hard = declared.hard_time_limit if declared else None
        if hard is not None and isinstance(allowed, int) and timedelta(milliseconds=allowed) <= hard:
            took = timedelta(milliseconds=allowed)
            bad.append(f"{queue.name!r}: a delivery may take {took}, and its slowest task {hard}")
    return _look("consumer timeouts", bad, "no task may run for longer than its queue allows")


def _alarms(management: Management) -> Look:
    found = management.ask("health/checks/alarms")
    if found is None:
        return Look("alarms", Verdict.SKIPPED, "this broker has no such check")
    if found.get("status") == "ok":
        return Look("alarms", Verdict.OK, "no memory or disk alarm")
    return Look("alarms", Verdict.FOUND, f"publishers are blocked: {found.get('reason')}")


def _flags(management: Management) -> Look:
    flags = management.ask("feature-flags") or []
    off = sorted(
        each["name"] for each in flags if each["state"] == "disabled" and each["stability"] == "stable"
    )
    bad = [f"stable feature flags are off: {', '.join(off)}; the next upgrade needs them"] if off else []
    return _look("feature flags", bad, f"all of {len(flags)} that are stable are on")


def _deprecated(management: Management) -> Look:
    used = management.ask("deprecated-features/used")
    if used is None:
        return Look("deprecated features", Verdict.SKIPPED, "brokers tell since 3.13")
    bad = [f"in use: {', '.join(sorted(each['name'] for each in used))}"] if used else []
    return _look("deprecated features", bad, "none is in use")


def _machines(expanded: Expanded, management: Management) -> Look:
    """Compare the versions of the queues' state machines: a queue left behind does not survive an upgrade."""
    versions: dict[int, list[str]] = {}
    for queue in expanded.queues:
        if queue.type != "quorum":
            continue
        members = management.ask(f"queues/{management.path('quorum', queue.name)}/status")
        if members is None:
            return Look("machine versions", Verdict.SKIPPED, "this broker does not tell")
        for member in members:
            versions.setdefault(_version_of(member), []).append(queue.name)
    if len(versions) <= 1:
        return Look("machine versions", Verdict.OK, f"all members run version {next(iter(versions), '-')}")
    oldest = min(versions)
    return Look(
        "machine versions",
        Verdict.FOUND,
        f"queue {versions[oldest][0]!r} is at version {oldest}, others at {max(versions)}; "
        "wait until it follows before an upgrade",
    )


def _passing_on(expanded: Expanded, management: Management) -> Look:
    """Look for delayed messages and dead letters that are due to go on, and do not.

    RabbitMQ passes them on in a process for each queue, all under one supervisor of the node. If that has
    ended (rabbitmq-server #16652), they stay where they are until the node is restarted; no error says so.
    """
    deadline = time.monotonic() + STALL.total_seconds()
    stuck = _due(management, [queue.name for queue in expanded.queues if queue.type == "quorum"])
    while stuck and time.monotonic() < deadline:
        time.sleep(LOOK_AGAIN.total_seconds())
        due = _due(management, stuck)
        stuck = {name: count for name, count in stuck.items() if due.get(name, 0) >= count}
    bad = [
        f"{count} messages in {name!r} are due to go on and have not for {STALL.seconds} s: the queue that "
        "they are for is full, or RabbitMQ has stopped dead-lettering on a node; see docs/operations.md"
        for name, count in stuck.items()
    ]
    return _look("delays and dead letters", bad, "what is due goes on")


def _due(management: Management, names: Collection[str]) -> dict[str, int]:
    """Return, by queue, how many messages wait for the confirm of the queue that they are passed on to."""
    held = [each.declared.name for each in management.queues() if _holds_more_than_it_shows(each)]
    pending = {name: management.pending_letters(name) for name in held if name in names}
    return {name: count for name, count in pending.items() if count}


def _holds_more_than_it_shows(status: QueueStatus) -> bool:
    return (status.messages or 0) > (status.ready or 0) + (status.unacknowledged or 0)


def _version_of(member: dict[str, Any]) -> int:
    return int(member.get("Machine Version", -1))


def _permissions(topology: Topology, management: Management, worker: str | None) -> Look:
    if worker is None or not topology.has_application:
        return Look("permissions", Verdict.SKIPPED, "no worker's user was named")
    try:
        found = management.ask(management.path("permissions", worker))
    except AccessRefused as exc:
        return Look("permissions", Verdict.UNKNOWN, str(exc))
    if found is None:
        return Look("permissions", Verdict.FOUND, f"user {worker!r} has none in this vhost")
    return _look(
        "permissions", list(_lacking(topology, found)), f"user {worker!r} has all that a worker needs"
    )


def _lacking(topology: Topology, found: dict[str, str]) -> Iterator[str]:
    """Yield what a worker may not do: read its queues, write where tasks, letters and delays go."""
    writes = [
        topology.exchange,
        naming.dead_letter_exchange_of(topology.name),
        naming.delay_entry_exchange(topology.name, topology.delay.levels),
    ]
    for right, names in (("read", list(topology.queues)), ("write", writes)):
        for name in names:
            if re.search(found[right], name) is None or not found[right]:
                yield f"it may not {right} {name!r}"


def _dropped(metrics_url: str | None) -> Look:
    """Read how many dead letters were dropped since the node started, because there was no DLX."""
    what = "dropped letters"
    if metrics_url is None:
        return Look(what, Verdict.SKIPPED, "no metrics URL was given")
    try:
        text = httpx.get(metrics_url, timeout=10, trust_env=False).raise_for_status().text
    except httpx.HTTPError as exc:
        return Look(what, Verdict.UNKNOWN, f"the metrics cannot be read ({type(exc).__name__})")
    counted = {name: float(value) for name, value in _DROPPED.findall(text) if float(value)}
    bad = [f"{value:.0f} {name}" for name, value in counted.items()]
    return _look(what, bad, "none since the node started")


def _look(what: str, bad: list[str], fine: str) -> Look:
    if not bad:
        return Look(what, Verdict.OK, fine)
    more = f" ({len(bad)} in all)" if len(bad) > 1 else ""
    return Look(what, Verdict.FOUND, f"{bad[0]}{more}")


def _or_refused(what: str, look: Any, management: Management) -> Look:
    try:
        found: Look = look(management)
    except AccessRefused as exc:
        return Look(what, Verdict.UNKNOWN, str(exc))
    return found
