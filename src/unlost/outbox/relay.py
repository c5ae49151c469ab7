"""Publishes what is in the outbox, in order for each key; several relays may run on one database.

A pass claims a batch under a lease, publishes it with a window of confirms while no transaction is open,
and marks what was confirmed. Killed at any point, what it had claimed is another relay's when the lease
ends; a message that was published and not yet marked is published again under the same id, and its
consumer's ledger absorbs the copy.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Protocol

from unlost.core import headers as h
from unlost.core.clock import from_epoch_ms
from unlost.core.message import Outgoing
from unlost.errors import BrokerError, StoreUnavailable
from unlost.outbox.state import Again, Backoff, Delivered, Entry, Park, Verdict, judge, waves
from unlost.outbox.store import OutboxStore
from unlost.outbox.wakeup import Wakeup
from unlost.topology.naming import shortened_delay_key

logger = logging.getLogger(__name__)

#: Publishes messages and returns, in their order, what each raised; ``None`` for a confirmed one.
Send = Callable[[Sequence[Outgoing]], Sequence[BrokerError | None]]


class Published(Protocol):
    """What became of one message."""

    @property
    def error(self) -> BrokerError | None:
        """Return why it is not known to be safe; ``None`` when it was confirmed."""


class BulkPublisher(Protocol):
    """The confirming publisher, as far as a relay needs it."""

    def publish_many(self, messages: Iterable[Outgoing], *, window: int) -> Iterator[Published]:
        """Publish with so many confirms in flight; yield each message's outcome, in order."""


def sending(
    publisher: BulkPublisher, window: int = 200, ready: Callable[[Outgoing], Outgoing] | None = None
) -> Send:
    """Return what a relay publishes with.

    Args:
        publisher: Confirms what it publishes.
        window: How many confirms are in flight.
        ready: Makes a message of a row: signs it, puts a large payload into a claim store; raises
            StoreUnavailable when it cannot.
    """

    def send(messages: Sequence[Outgoing]) -> list[BrokerError | None]:
        prepared = messages if ready is None else [ready(message) for message in messages]
        return [published.error for published in publisher.publish_many(prepared, window=window)]

    return send


#: How many confirmed messages may be unmarked: so many copies a crash makes at most, beside a wave's.
SETTLE_AT = 200


class Step(StrEnum):
    """The points at which a relay may die."""

    CLAIMED = "claimed"
    PUBLISHED = "published"
    SETTLED = "settled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a relay works.

    Attributes:
        batch: The most rows of one claim.
        lease: How long claimed rows are a relay's; what is unpublished at half of it is given back.
        poll: How long to wait when there is nothing to do and nobody tells of a commit.
        retention: How long delivered rows are kept.
        purge_every: How often older ones are deleted.
        backoff: How failures are tried again.
    """

    batch: int = 1000
    lease: timedelta = timedelta(seconds=60)
    poll: timedelta = timedelta(seconds=1)
    retention: timedelta = timedelta(days=1)
    purge_every: timedelta = timedelta(minutes=1)
    backoff: Backoff = field(default_factory=Backoff)


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a relay has done: rows by verdict, rows whose lease had moved on, rows given back."""

    delivered: int = 0
    again: int = 0
    parked: int = 0
    lost: int = 0
    released: int = 0
    purged: int = 0

    def count(self, verdict: Verdict) -> None:
        """Count a verdict."""
        match verdict:
            case Delivered():
                self.delivered += 1
            case Again():
                self.again += 1
            case Park():
                self.parked += 1


class Relay:
    """One relay.

    Args:
        store: The outbox.
        send: Publishes a sequence of messages with a window of confirms.
        wakeup: What to wait for when there is nothing to do.
        options: How to work.
        on_step: Called at each point where a crash would matter; for tests that die there.
    """

    def __init__(
        self,
        store: OutboxStore,
        send: Send,
        wakeup: Wakeup,
        options: Options | None = None,
        on_step: Callable[[Step], None] = lambda _step: None,
    ) -> None:
        self._store = store
        self._send = send
        self._wakeup = wakeup
        self._options = options or Options()
        self._on_step = on_step
        self._purge_at = 0.0
        self._troubles = 0
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.tally = Tally()

    def run(self, stop: threading.Event) -> None:
        """Relay until ``stop`` is set; a batch that has begun is settled or given back first.

        A database or a broker that cannot be reached is waited for, with a growing pause.
        """
        try:
            while not stop.is_set():
                if not self._pass_or_pause(stop):
                    self._wakeup.wait(self._options.poll.total_seconds(), stop)
        finally:
            self._wakeup.close()

    def drain(self, stop: threading.Event) -> None:
        """Relay until nothing is available any more, or ``stop`` is set.

        Raises:
            StoreUnavailable: The database cannot be asked.
        """
        while not stop.is_set() and self.relay_once(stop):
            pass

    def _pass_or_pause(self, stop: threading.Event) -> bool:
        """Relay a batch; true when there may be more at once."""
        try:
            more = self.relay_once(stop)
            self._purge()
        except StoreUnavailable as exc:
            self._troubles += 1
            logger.error("the outbox cannot be reached, trying again: %s", exc)  # noqa: TRY400 - expected
            more = False
        if self._troubles:
            stop.wait(self._options.backoff.after(self._troubles - 1).total_seconds())
        return more

    def relay_once(self, stop: threading.Event) -> bool:
        """Claim and publish one batch; false when there was none.

        Raises:
            StoreUnavailable: The database cannot be asked; what is claimed comes back with its lease's end.
        """
        began = time.monotonic()
        entries = self._store.claim(self.holder, self._options.batch, self._options.lease)
        if not entries:
            return False
        self._on_step(Step.CLAIMED)
        _Batch(self, entries, began + self._options.lease.total_seconds() / 2).publish(stop)
        return True

    def send(self, entries: Sequence[Entry]) -> list[tuple[Entry, Verdict]]:
        """Publish entries and return what became of each; remember whether the broker was there."""
        now = datetime.now(UTC)
        errors = self._send([_on_time(each.message, now) for each in entries])
        verdicts = [judge(e, error, self._options.backoff) for e, error in zip(entries, errors, strict=True)]
        if Delivered() in verdicts:
            self._troubles = 0
        elif any(isinstance(verdict, Again) and not verdict.counted for verdict in verdicts):
            self._troubles += 1
        self._on_step(Step.PUBLISHED)
        return list(zip(entries, verdicts, strict=True))

    def settle(self, settled: Sequence[tuple[Entry, Verdict]]) -> None:
        """Write what became of entries."""
        written = self._store.settle(settled)
        self._on_step(Step.SETTLED)
        self.tally.lost += len(settled) - written
        for entry, verdict in settled:
            self.tally.count(verdict)
            if isinstance(verdict, Park):
                logger.error("%s is parked: %s", entry.message.describe(), verdict.reason)
            elif isinstance(verdict, Again):
                logger.warning("%s is tried again: %s", entry.message.describe(), verdict.reason)

    def release(self, entries: Sequence[Entry]) -> None:
        """Give entries back."""
        if entries:
            self._store.release(entries)
            self.tally.released += len(entries)

    def _purge(self) -> None:
        if time.monotonic() >= self._purge_at:
            self.tally.purged += self._store.purge(self._options.retention)
            self._purge_at = time.monotonic() + self._options.purge_every.total_seconds()


class _Batch:
    """A claimed batch on its way."""

    def __init__(self, relay: Relay, entries: Sequence[Entry], deadline: float) -> None:
        self._relay = relay
        self._entries = entries
        self._deadline = deadline
        self._unsettled: list[tuple[Entry, Verdict]] = []
        # Keys whose earlier message is not published: the later ones wait behind it.
        self._blocked: set[str] = set()
        self._left: list[Entry] = []

    def publish(self, stop: threading.Event) -> None:
        """Publish wave after wave and settle; give back what is not reached in time."""
        for wave in waves(self._entries):
            if stop.is_set() or time.monotonic() > self._deadline:
                self._left.extend(wave)
            else:
                self._publish_wave(wave)
        self._settle()
        self._relay.release(self._left)

    def _publish_wave(self, wave: Sequence[Entry]) -> None:
        free = [each for each in wave if each.ordering_key not in self._blocked]
        self._left.extend(each for each in wave if each.ordering_key in self._blocked)
        if not free:
            return
        for entry, verdict in self._relay.send(free):
            self._unsettled.append((entry, verdict))
            if isinstance(verdict, Again) and entry.ordering_key is not None:
                self._blocked.add(entry.ordering_key)
        if len(self._unsettled) >= SETTLE_AT:
            self._settle()

    def _settle(self) -> None:
        if self._unsettled:
            unsettled, self._unsettled = self._unsettled, []
            self._relay.settle(unsettled)


def _on_time(message: Outgoing, now: datetime) -> Outgoing:
    """Take the time that a delayed message has spent in the outbox off its delay."""
    due = message.headers.get(h.DUE)
    if not isinstance(due, int):
        return message
    key = shortened_delay_key(message.routing_key, from_epoch_ms(due) - now)
    return message if key is None else message.to(message.exchange, key)
