"""Empties a queue into another one while others may still consume it, and compares the totals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from kombu import Connection

from unlost.broker.inspector import Inspector
from unlost.broker.journal import Journal
from unlost.broker.management import Management, QueueStatus
from unlost.broker.mover import Moved, Mover
from unlost.errors import BrokerError, BrokerUnavailable, ConfirmUnknown, Refused
from unlost.topology.migration import Conserved, Count, Facts, judge, queue_type_of

_LOOK_AGAIN_AFTER = timedelta(milliseconds=500)
_COUNT_AGAIN = 10
_PASSING = (BrokerUnavailable, Refused, ConfirmUnknown)
#: From here on the broker does not take a client's x-death headers for its own.
_DEATHS_ARE_HARMLESS_SINCE = (4, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a migration waits.

    Attributes:
        wait: For workers to come or go, for messages that others hold, for a broker that does not answer.
        settle: How long a queue must be seen empty. Totals of the management API are up to 5 s old.
        window: How many messages may be under way at a time, and so be doubled by a crash.
    """

    wait: timedelta = timedelta(minutes=10)
    settle: timedelta = timedelta(seconds=6)
    window: int = 256


class Waiting(Exception):
    """What was waited for did not come in time."""


def read_facts(management: Management) -> Facts:
    """Return what a migration is planned from; raises as :class:`Management`."""
    return Facts(version=management.version(), objects=tuple(management.objects()))


class Drain:
    """Moves everything from one queue to another.

    Args:
        management: For totals.
        broker: Where the mover connects.
        inspector: For what is ready at this moment.
        journal: Where counts and moved messages are written down.
        source: The queue to empty.
        target: The queue to fill.
        patience: How long to wait, and the mover's window.
        on_look: Called about twice a second with what is left.
    """

    def __init__(
        self,
        management: Management,
        broker: Connection,
        inspector: Inspector,
        journal: Journal,
        source: str,
        target: str,
        *,
        patience: Patience,
        on_look: Callable[[int], None],
    ) -> None:
        self._management = management
        self._broker = broker
        self._inspector = inspector
        self._journal = journal
        self._source = source
        self._target = target
        self._patience = patience
        self._on_look = on_look
        self._keep_deaths = management.version() >= _DEATHS_ARE_HARMLESS_SINCE

    def __call__(self, *, accept_counts: bool = False) -> Conserved | None:
        """Move all that is in the source, and compare the totals; ``None`` if it does not exist.

        Raises:
            Waiting: What is left is not ours to move, and did not come in time.
            BrokerError: Messages seem to be missing, or a queue is gone.
            BrokerUnavailable, Refused, ConfirmUnknown: It went on for as long as the patience.
        """
        source, target = self._source, self._target
        if self._inspector.depth(source) is None:
            return None
        before = self._journal.progress.before or self._count()
        if self._journal.progress.before is None:
            self._journal.counted(before)
        self._drain()
        verdict = judge(before, self._looks())
        if verdict is Conserved.NO and not accept_counts:
            now = self._count()
            raise BrokerError(
                f"{target!r} gained {now.target - before.target} messages while {source!r} lost "
                f"{before.source - now.source}, and nobody seems to have consumed: find out who took them. "
                "Nothing is deleted until then (--accept-counts goes on all the same)"
            )
        return verdict

    def _looks(self) -> Iterator[Count]:
        """Count, and again as long as somebody asks for it, but not for ever."""
        for _ in range(_COUNT_AGAIN):
            yield self._count()
            time.sleep(_LOOK_AGAIN_AFTER.total_seconds())

    def _count(self) -> Count:
        source, target = self._source, self._target
        old, new = self._inspector.depth(source), self._inspector.depth(target)
        if new is None:
            raise BrokerError(f"queue {target!r} is gone: create it again and go on")
        facts = read_facts(self._management)
        return Count(
            source=old.ready if old else 0,
            target=new.ready,
            consumers=(old.consumers if old else 0) + new.consumers,
            transient=any(_has_ttl(name, facts) for name in (source, target)),
        )

    def _drain(self) -> None:
        """Move messages until the source has been empty for the time it takes totals to tell the truth."""
        last_progress = time.monotonic()
        empty_since: float | None = None
        for moved, problem in self._moving():
            now = time.monotonic()
            if moved.messages:
                self._journal.moved(moved.messages, moved.redelivered)
                last_progress, empty_since = now, None
            waited = now - last_progress > self._patience.wait.total_seconds()
            if problem is not None:
                if waited:
                    raise problem
                continue
            reason, left = self._left()
            self._on_look(left)
            if reason is None:
                empty_since = empty_since or now
                if now - empty_since >= self._patience.settle.total_seconds():
                    return
                continue
            empty_since = None
            if waited:
                raise Waiting(reason)

    def _moving(self) -> Iterator[tuple[Moved, Exception | None]]:
        """Yield every half second what was moved, and what went wrong and may pass."""
        mover: Mover | None = None
        try:
            while True:
                moved, problem = Moved(), None
                try:
                    mover = mover or self._mover()
                    moved = mover.run(_LOOK_AGAIN_AFTER)
                except _PASSING as exc:
                    problem = exc
                    if mover is not None:
                        moved = mover.take()
                        mover.close()
                        mover = None
                    time.sleep(_LOOK_AGAIN_AFTER.total_seconds())
                yield moved, problem
        finally:
            if mover is not None:
                mover.close()

    def _mover(self) -> Mover:
        return Mover(
            self._broker,
            self._source,
            self._target,
            window=self._patience.window,
            keep_deaths=self._keep_deaths,
        )

    def _left(self) -> tuple[str | None, int]:
        """Say what keeps the source from being empty, and how many messages are in it."""
        queue = self._source
        status, depth = self._management.queue(queue), self._inspector.depth(queue)
        if status is None or depth is None:
            raise BrokerError(f"queue {queue!r} is gone, and what was inside with it")
        if status.messages is None:
            raise BrokerError(
                f"the management API does not tell how many messages are in {queue!r}: switch its "
                "statistics on (management_agent.disable_metrics_collector = false)"
            )
        if status.state != "running" or is_leaderless(status):
            return f"queue {queue!r} is {status.state}", status.messages
        left = max(status.messages, depth.ready)
        if not left:
            return None, 0
        held = status.unacknowledged or 0
        rest = status.messages - held - (status.ready or 0)
        return (
            f"{queue!r} holds {left} messages: {held} are with consumers, {max(rest, 0)} wait for a retry "
            "or, as dead letters, for a queue that takes them"
        ), left


def is_leaderless(status: QueueStatus) -> bool:
    """Return whether a quorum queue has no leader."""
    return queue_type_of(status.declared) == "quorum" and status.leader is None


def _has_ttl(name: str, facts: Facts) -> bool:
    queue = facts.queue(name)
    if queue is None:
        return False
    policy = facts.policy_of(queue)
    return "x-message-ttl" in queue.arguments or bool(policy and "message-ttl" in policy.definition)
