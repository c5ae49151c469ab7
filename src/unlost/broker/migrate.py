"""Carries out a migration step by step, so that it can be killed anywhere and gone on with.

Every step can be taken twice: what exists is not created again, what is gone is not deleted again, and a
move goes on with what is still there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum

from kombu import Connection

from unlost.broker.drain import Drain, Patience, Waiting, is_leaderless
from unlost.broker.inspector import Inspector
from unlost.broker.journal import Journal, Progress
from unlost.broker.management import Management, QueueStatus
from unlost.errors import BrokerError, BrokerUnavailable
from unlost.topology import naming
from unlost.topology.migration import Conserved, Do, Step, queue_type_of, way_back
from unlost.topology.objects import Binding, Exchange, Queue

_LOOK_AGAIN_AFTER = timedelta(milliseconds=500)


class State(StrEnum):
    """How a run ended."""

    DONE = "done"
    READY = "ready to finish"
    WAITING = "waiting"
    TAKEN_BACK = "taken back"


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to.

    Attributes:
        state: How it ended.
        reason: What it waits for, or what is left to do.
        conserved: Whether the totals prove that all is there; ``None`` when nothing was to be moved.
    """

    state: State
    reason: str = ""
    conserved: Conserved | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something to show: a step begins (``done`` false) or is done, or messages were moved."""

    step: Step
    done: bool
    progress: Progress
    left: int | None = None


class Migration:
    """Carries out what a journal says is left.

    Args:
        management: The vhost.
        broker: The same vhost over AMQP.
        journal: Where the plan is, and where each step is written down.
        patience: How long to wait, and for how many messages.
        accept_counts: Go on although the totals say that messages are missing.
        on_event: Called after each step and while messages are moved.
    """

    def __init__(
        self,
        management: Management,
        broker: Connection,
        journal: Journal,
        *,
        patience: Patience | None = None,
        accept_counts: bool = False,
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self._management = management
        self._broker = broker
        self._journal = journal
        self._patience = patience or Patience()
        self._accept_counts = accept_counts
        self._on_event = on_event
        self._inspector = Inspector(broker)
        self._conserved: Conserved | None = None

    def close(self) -> None:
        """Close its connection."""
        self._inspector.close()

    def go_on(self, *, finish: bool) -> Result:
        """Take the steps that are left; those from the last one on only if ``finish``.

        Raises:
            BrokerUnavailable: The broker does not answer; run it again.
            BrokerError: The broker refuses a step, or the totals say that messages are missing.

        Crash safety:
            At most one step is begun and not done; it is taken again. Messages that were confirmed in their
            new place and not yet acked in the old one, a window at most, will be in the new one twice.
        """
        progress = self._journal.progress
        forward = progress.back is None
        stop = len(progress.steps) if finish or not forward else progress.plan.last
        try:
            while progress.done < stop:
                self._take(progress.done)
        except Waiting as exc:
            return Result(State.WAITING, str(exc), self._conserved)
        if not forward:
            return Result(State.TAKEN_BACK, conserved=self._conserved)
        if progress.finished:
            return Result(State.DONE, conserved=self._conserved)
        left = "; ".join(str(step) for step in progress.steps[stop:])
        return Result(State.READY, f"left to do, without a way back: {left}", self._conserved)

    def go_back(self) -> Result:
        """Undo what has been done; the same errors as :meth:`go_on`.

        Raises:
            TopologyError: The last step has begun: there is no way back.
        """
        progress = self._journal.progress
        if progress.back is None:
            self._journal.back(way_back(progress.plan, self._surely_begun(progress)))
        return self.go_on(finish=True)

    def _surely_begun(self, progress: Progress) -> int:
        """Return how many steps count as begun: not a last one that left its queue or exchange alone."""
        if progress.begun < len(progress.plan.steps):
            return progress.begun
        last = progress.plan.steps[-1].object
        kinds = self._management.exchanges() if isinstance(last, Exchange) else self._management.queues()
        return progress.begun - any(each.declared.name == last.key for each in kinds)

    def _take(self, number: int) -> None:
        step = self._journal.progress.steps[number]
        self._journal.begin(number)
        self._show(step)
        self._persist(step)
        self._journal.done(number)
        self._show(step, done=True)

    def _persist(self, step: Step) -> None:
        """Take a step, again and again while the broker does not answer."""
        deadline = time.monotonic() + self._patience.wait.total_seconds()
        while True:
            try:
                return self._do(step)
            except BrokerUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_AGAIN_AFTER.total_seconds())

    def _do(self, step: Step) -> None:
        match step.do:
            case Do.PUT_POLICY | Do.BIND:
                self._management.put(step.object)
            case Do.CREATE:
                self._create(step)
            case Do.DELETE_POLICY:
                self._management.delete_policy(step.object.key)
            case Do.UNBIND:
                self._unbind(step)
            case Do.DRAIN:
                self._move(step, step.object.key, step.other)
            case Do.DELETE if isinstance(step.object, Exchange):
                self._delete_exchange(step.object, step.other)
            case Do.DELETE:
                self._delete_queue(step)
            case Do.AWAIT_CONSUMERS | Do.AWAIT_RELEASE | Do.AWAIT_DELAYED:
                self._await(step)

    def _create(self, step: Step) -> None:
        self._management.put(step.object)
        if isinstance(step.object, Queue):
            name = step.object.name
            self._wait_for(lambda: self._not_ready(self._management.queue(name)))

    def _not_ready(self, status: QueueStatus | None) -> str | None:
        if status is not None and status.state == "running" and not is_leaderless(status):
            return None
        return "the new queue has no leader yet; are enough nodes up?"

    def _unbind(self, step: Step) -> None:
        route = step.object
        if not isinstance(route, Binding):
            raise TypeError(f"{route!r} is no binding")
        bindings = self._management.bindings()
        if route not in bindings:
            return
        plan = self._journal.progress.plan
        old, new = plan.hops[step.hop] if plan.hops else ("", "")
        if route.destination == old and replace(route, destination=new) not in bindings:
            raise BrokerError(
                f"route {route.key} is not unbound, because the same route to {new!r} is gone: "
                "bind it again, or take the migration back"
            )
        self._inspector.unbind(route)
        if route in self._management.bindings():
            raise BrokerError(f"route {route.key} is still there after it was unbound; unbind it by hand")

    def _await(self, step: Step) -> None:
        name = step.object.key
        match step.do:
            case Do.AWAIT_CONSUMERS:
                self._wait_for(lambda: None if self._consumers(name) else f"nobody consumes {name!r} yet")
            case Do.AWAIT_RELEASE:
                self._wait_for(
                    lambda: f"{found} consumers of {name!r}" if (found := self._consumers(name)) else None
                )
            case _:
                self._wait_for(lambda: self._delayed(step.other))

    def _consumers(self, queue: str) -> int:
        depth = self._inspector.depth(queue)
        return depth.consumers if depth else 0

    def _delayed(self, prefix: str) -> str | None:
        """Say how many messages are on a delay path: their address is part of a key that cannot be listed."""
        levels = set(naming.delay_levels(prefix, naming.MAX_LEVELS))
        waiting = sum(
            each.messages or 0 for each in self._management.queues() if each.declared.name in levels
        )
        return f"{waiting} messages are on the delay path of {prefix!r}" if waiting else None

    def _move(self, step: Step, source: str, target: str) -> None:
        drain = Drain(
            self._management,
            self._broker,
            self._inspector,
            self._journal,
            source,
            target,
            patience=self._patience,
            on_look=lambda left: self._show(step, left=left),
        )
        self._conserved = drain(accept_counts=self._accept_counts)

    def _delete_queue(self, step: Step) -> None:
        queue = step.object
        if not isinstance(queue, Queue):
            raise TypeError(f"{queue!r} is no queue")
        if self._inspector.depth(queue.name) is None:
            return
        routes = [each.key for each in self._management.bindings() if _leads_to(each, queue.name)]
        if routes:
            raise BrokerError(
                f"queue {queue.name!r} is not deleted: {routes[0]} leads there since; unbind it, or take the "
                "migration back"
            )
        self._move(step, queue.name, step.other)
        if found := self._consumers(queue.name):
            raise Waiting(f"{found} consumers of {queue.name!r}")
        with_it = self._inspector.delete_queue(queue.name, only_empty=queue_type_of(queue) == "classic")
        if with_it:
            raise BrokerError(
                f"{with_it} messages were published to {queue.name!r} by the default exchange in the moment "
                "of its deletion and went with it: find who publishes there"
            )

    def _delete_exchange(self, exchange: Exchange, other: str) -> None:
        bindings = self._management.bindings()
        missing = [
            each.key
            for each in bindings
            if other and each.source == exchange.name and replace(each, source=other) not in bindings
        ]
        if missing:
            raise BrokerError(
                f"exchange {exchange.name!r} is not deleted: {missing[0]} was bound since, and {other!r} has "
                "no such route; bind it there"
            )
        self._inspector.delete_exchange(exchange.name)

    def _wait_for(self, problem: Callable[[], str | None]) -> None:
        """Ask until there is no problem any more."""
        deadline = time.monotonic() + self._patience.wait.total_seconds()
        while reason := problem():
            if time.monotonic() > deadline:
                raise Waiting(reason)
            time.sleep(_LOOK_AGAIN_AFTER.total_seconds())

    def _show(self, step: Step, *, done: bool = False, left: int | None = None) -> None:
        self._on_event(Event(step, done, self._journal.progress, left))


def _leads_to(binding: Binding, queue: str) -> bool:
    return binding.destination_type == "queue" and binding.destination == queue
