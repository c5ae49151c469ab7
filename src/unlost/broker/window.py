"""Many publishes in flight at once: each with its own outcome, none waited for alone.

A round trip for each message is what makes confirmed publishing slow. A window keeps up to ``size``
messages unanswered, coalesces their frames into few writes, and matches what comes back to each. What a
connection's end leaves in doubt is sent again under the same message id; what a channel's end leaves in
doubt (a missing exchange, a body too large) is sent again one by one, so that the guilty message is found
and no other is harmed. A message that is sent again may come behind later ones.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import amqp

from unlost.broker.attempts import connect_timeout
from unlost.broker.errors import AccessRefused, BrokerUnavailable, ConfirmUnknown, InvalidMessage, Refused
from unlost.broker.link import LOST, Link, Sending
from unlost.broker.pool import Pool
from unlost.core.message import Outgoing
from unlost.core.outcome import Outcome
from unlost.errors import BrokerError

#: Frames are collected up to this many bytes before they are written: a write costs more than they do.
COALESCED_BYTES = 32 * 1024

#: After this long without a write a message is written at once: a trickle is not held back.
TRICKLE = timedelta(milliseconds=20)

#: What a missing exchange or a failed connection said holds for the messages that come this soon after.
SAID_JUST_NOW = timedelta(seconds=1)

_LONGEST_PAUSE = 1.0
_FIRST_PAUSE = 0.1


@dataclass(frozen=True, slots=True)
class Published:
    """What became of one message.

    Attributes:
        outgoing: The message as it was given.
        outcome: ``OK``: stored; ``FAILED``: certainly not stored; ``UNKNOWN``: an attempt went out and
            nobody can tell.
        error: Why it is not ``OK``; a :class:`unlost.errors.ConfirmUnknown` if the outcome is unknown.
    """

    outgoing: Outgoing
    outcome: Outcome
    error: BrokerError | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a publisher waits; all as in :class:`unlost.broker.publisher.Publisher`."""

    confirm: timedelta
    publish: timedelta
    connect: timedelta


@dataclass(slots=True, eq=False)
class _Entry(Sending):
    """A message in a window. ``doubt`` is an attempt of which nothing is known; ``alone`` asks for proof."""

    doubt: ConfirmUnknown | None = None
    alone: bool = False
    given_up: BrokerError | None = None


class Window:
    """Takes messages, keeps up to ``size`` of them unanswered, and hands out what became of them, in order.

    Used by the thread that made it, in the process that made it. Patience counts from when trouble began,
    not for each message: while nothing gets through for longer than that, messages fail at once.

    Args:
        pool: Where links come from.
        size: How many messages are held until their outcome is known.
        patience: How long to wait for what.
        publish: What an unknown outcome's error sends its message again with.
        confirms: Off only for the runs that prove that confirms are needed.

    Raises:
        ValueError: The size is below 1.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        size: int,
        patience: Patience,
        publish: Callable[..., None],
        confirms: bool = True,
    ) -> None:
        if size < 1:
            raise ValueError(f"a window of {size} messages holds none: give at least 1")
        self._pool = pool
        self._size = size
        self._patience = patience
        self._publish = publish
        self._confirms = confirms
        self._pid = os.getpid()
        self._link: Link | None = None
        #: The message on the link beside which there may be no other: an end of the channel is about it.
        self._solo: _Entry | None = None
        #: All that have no outcome yet or wait behind one that has none, as they were given.
        self._order: deque[_Entry] = deque()
        self._due: deque[_Entry] = deque()
        #: Refused by a full queue; sent again at ``_later_at``.
        self._later: list[_Entry] = []
        self._later_at = 0.0
        self._ready: deque[Published] = deque()
        self._reached = False
        self._flushed_at = 0.0
        self._pauses = 0
        #: Since when nothing gets through: at all, and to an address.
        self._trouble_since: float | None = None
        self._full_since: dict[tuple[str, str], float] = {}
        self._no_link: tuple[float, BrokerError] | None = None
        self._no_exchange: dict[str, tuple[float, BrokerError]] = {}

    def __len__(self) -> int:
        return len(self._order)

    def put(self, message: Outgoing) -> None:
        """Send a message, or put it into the buffer; waits while the window is full.

        Raises:
            RuntimeError: The window was opened by another process, before a fork.
        """
        self._refuse_a_fork()
        entry = _Entry(message)
        self._order.append(entry)
        self._due.append(entry)
        if len(self._order) >= self._size:
            room = self._size - max(1, self._size // 2)
            self._pump(lambda: len(self._order) <= room)
        elif not (self._later or self._full_since):
            self._attempt(self._write_some)

    def settle(self) -> None:
        """Wait until every message that was put has an outcome.

        Raises:
            RuntimeError: The window was opened by another process, before a fork.
        """
        self._refuse_a_fork()
        self._pump(lambda: not self._order)

    def settled(self) -> Iterator[Published]:
        """Hand out the outcomes that are known, up to the first that is not; waits for nothing."""
        while self._ready:
            yield self._ready.popleft()

    def close(self) -> None:
        """Give the connection back, or close it if anything is on its way, which stays in doubt."""
        link, self._link = self._link, None
        if link is None:
            return
        if link.pid == os.getpid() and (link.is_idle or not self._confirms):
            self._pool.give_back(link)
        else:
            self._pool.discard(link)

    def _refuse_a_fork(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(
                "this window was opened by the parent process, whose connection a child must not touch: "
                "open a new one after the fork"
            )

    def _pump(self, enough: Callable[[], bool]) -> None:
        while True:
            self._harvest()
            if enough():
                return
            self._attempt(self._exchange)

    def _exchange(self) -> None:
        """Write what may be written, and handle the next thing that arrives."""
        if self._must_renew:
            self._renew()
        if not self._must_renew:
            self._write_due()
        link = self._link
        if link is not None and not link.is_idle:
            if link.blocked is None:
                self._flush(link)
            self._await_something(link)
        elif self._later and not self._due:
            time.sleep(max(0.0, self._later_at - time.monotonic()))

    def _write_some(self) -> None:
        """Render what was put; write it when there is enough for a write, or when writes are rare."""
        self._write_due()
        link = self._link
        if link is None or link.is_idle:
            return
        rare = time.monotonic() - self._flushed_at > TRICKLE.total_seconds()
        if link.blocked is None and (rare or link.buffered_bytes >= COALESCED_BYTES):
            self._flush(link)
        elif not self._due:
            return
        while link.drain(0):
            self._note_answers(link)

    # -- sending

    def _write_due(self) -> None:
        while self._due:
            entry = self._due[0]
            if self._was_refused_just_now(entry):
                continue
            if self._link is None:
                self._link = self._open()
            link = self._link
            must_be_alone = self._confirms and (
                entry.alone or self._solo is not None or entry.outgoing.exchange not in link.proven
            )
            if not link.is_idle and (must_be_alone or link.is_settling or link.blocked is not None):
                return
            self._due.popleft()
            self._solo = entry if must_be_alone else None
            self._render(link, entry)

    def _render(self, link: Link, entry: _Entry) -> None:
        deadline = time.monotonic() + self._patience.confirm.total_seconds()
        try:
            link.render(entry, deadline)
        except InvalidMessage as exc:
            self._solo = None
            entry.given_up = exc
        except (Refused, BrokerUnavailable):
            self._due.appendleft(entry)
            raise

    def _flush(self, link: Link) -> None:
        self._reached = True
        self._flushed_at = time.monotonic()
        link.flush()
        if not self._confirms:
            for sending in link.unconfirmed:
                sending.answered = True

    def _open(self) -> Link:
        if self._no_link is not None:
            at, error = self._no_link
            is_final = isinstance(error, AccessRefused) or self._left() <= 0
            if is_final and time.monotonic() - at < SAID_JUST_NOW.total_seconds():
                raise type(error)(str(error)) from error.__cause__
        try:
            return self._pool.borrow(connect_timeout(self._left()))
        except BrokerError as exc:
            self._no_link = (time.monotonic(), exc)
            raise

    def _was_refused_just_now(self, entry: _Entry) -> bool:
        """Fail a message whose exchange was missing a moment ago, unsent: each try would cost a channel."""
        said = self._no_exchange.get(entry.outgoing.exchange)
        if said is None or entry.doubt is not None:
            return False
        at, error = said
        if time.monotonic() - at > SAID_JUST_NOW.total_seconds():
            del self._no_exchange[entry.outgoing.exchange]
            return False
        self._due.popleft()
        entry.given_up = type(error)(f"{entry.outgoing.describe()}: not sent. {error.__cause__}")
        return True

    # -- answers

    def _await_something(self, link: Link) -> None:
        """Handle one thing that arrives, or give the link up when the oldest message has no answer."""
        # A blocked broker has stopped reading for good reason: it is given the whole patience.
        longest = self._patience.confirm if link.blocked is None else self._patience.publish
        since = max(link.oldest().sent_at, link.unblocked_at) if link.awaits_answers else time.monotonic()
        left = until = since + longest.total_seconds() - time.monotonic()
        if self._later and not self._must_renew:
            left = min(left, self._later_at - time.monotonic())
        if link.drain(left):
            self._note_answers(link)
        elif left == until:
            raise TimeoutError(link.blocked or f"no confirm within {longest.total_seconds():g} s")

    def _note_answers(self, link: Link) -> None:
        for sending in link.complaints:
            if isinstance(sending, _Entry):
                self._hear(link, sending)
        link.complaints.clear()
        if self._solo is not None and self._solo.answered:
            link.proven.add(self._solo.outgoing.exchange)
            self._solo = None

    def _hear(self, link: Link, entry: _Entry) -> None:
        """Take a message whose answer was no confirm: refused ones wait, doubtful ones go again, alone."""
        error, entry.error, entry.answered = entry.error, None, False
        self._trouble_since = None
        if entry is self._solo:
            link.proven.add(entry.outgoing.exchange)
            self._solo = None
        if isinstance(error, ConfirmUnknown):
            entry.doubt, entry.alone = error, True
            self._due.append(entry)
        elif type(error) is Refused and not self._is_over_for(entry):
            if not self._later:
                self._later_at = time.monotonic() + self._next_pause()
            self._later.append(entry)
        elif error is not None:
            entry.given_up = error

    @property
    def _must_renew(self) -> bool:
        """Whether it is time for another try of what was refused; till then no more is written."""
        return bool(self._later) and time.monotonic() >= self._later_at

    def _renew(self) -> None:
        """Try again what was refused, on another channel, once nothing is on its way on this one.

        A channel on which a full queue has refused may never learn that there is room: RabbitMQ 3.10 does
        not tell it when the limit is taken away (seen live), and refuses everything on it from then on.
        """
        if self._link is not None:
            if not self._link.is_idle:
                return
            self._pool.discard(self._link)
            self._link = None
        self._due.extendleft(reversed(self._later))
        self._later = []

    def _harvest(self) -> None:
        """Move what has an outcome to the exit, in order."""
        while self._order and (self._order[0].answered or self._order[0].given_up is not None):
            entry = self._order.popleft()
            if entry.given_up is not None:
                self._ready.append(self._judged(entry, entry.given_up))
                continue
            self._ready.append(Published(entry.outgoing, Outcome.OK))
            self._trouble_since, self._pauses, self._no_link = None, 0, None
            if self._full_since:
                self._full_since.pop((entry.outgoing.exchange, entry.outgoing.routing_key), None)

    def _judged(self, entry: _Entry, error: BrokerError) -> Published:
        """Say what became of it: a failure proves nothing about an earlier attempt whose fate is unknown."""
        if entry.doubt is None:
            return Published(entry.outgoing, Outcome.FAILED, error)
        if error is not entry.doubt:
            entry.doubt.__cause__ = error
        return Published(entry.outgoing, Outcome.UNKNOWN, entry.doubt.sent_by(self._publish))

    # -- trouble

    def _attempt(self, act: Callable[[], None]) -> None:
        """Do something on the link, and put right what its end leaves behind."""
        try:
            act()
        except BrokerUnavailable as exc:
            # The other idle links are dead, too, as a rule: a broker that restarted closed them all.
            self._end_link(exc, str(exc))
            self._pool.close()
            self._wait_or_give_up(exc)
        except Refused as exc:
            self._end_link(exc, str(exc))
            self._reached = True
            self._wait_or_give_up(exc)
        except AccessRefused as exc:
            self._end_link(exc, str(exc))
            self._give_up_all(exc)
        except LOST as exc:
            began = self._end_link(exc, str(exc))
            if began is None:
                return
            if self._trouble_since is None:
                # Connections do break; the first time nothing is waited for.
                self._trouble_since = began
            else:
                self._wait_or_give_up(BrokerUnavailable(f"the connection to {self._pool!r} was lost: {exc}"))

    def _end_link(self, exc: Exception, why: str) -> float | None:
        """Close the link; what is on its way is in doubt, and goes again before all else.

        Returns:
            Since when nothing was heard of the oldest of them, by the monotonic clock; ``None`` if the
            broker closed the channel for a message's sake, which is no trouble with the broker.
        """
        link, self._link = self._link, None
        if link is None:
            return time.monotonic()
        self._note_answers(link)
        self._solo = None
        written = [each for each in link.unconfirmed if isinstance(each, _Entry) and not each.answered]
        unwritten = [each for each in link.unwritten if isinstance(each, _Entry)]
        began = min([each.sent_at for each in written], default=time.monotonic())
        self._pool.discard(link)
        if len(written) == 1 and self._is_proof(link, written[0], exc):
            self._due.extendleft(reversed(unwritten))
            return None
        guilt = isinstance(exc, amqp.exceptions.AMQPError) and not _is_connection_loss(exc)
        if not guilt:
            self._pool.avoid(link.place)
        for entry in written:
            doubt = ConfirmUnknown(f"{entry.outgoing.describe()}: {why}", entry.outgoing)
            doubt.__cause__ = exc
            entry.doubt, entry.alone = doubt, entry.alone or guilt
        self._due.extendleft(reversed(written + unwritten))
        return None if guilt and len(written) > 1 else began

    def _is_proof(self, link: Link, entry: _Entry, exc: Exception) -> bool:
        """Give up the only message on its way if the channel's end says that it cannot be taken."""
        error = link.explain(entry.outgoing, exc)
        if isinstance(error, ConfirmUnknown):
            return False
        error.__cause__ = exc
        self._trouble_since = None
        if isinstance(exc, amqp.exceptions.NotFound):
            self._no_exchange[entry.outgoing.exchange] = (time.monotonic(), error)
        if isinstance(error, InvalidMessage):
            # The same message was as impossible the time before: no copy of it can be stored.
            entry.doubt = None
        entry.given_up = error
        return True

    def _wait_or_give_up(self, error: BrokerUnavailable | Refused) -> None:
        if self._trouble_since is None:
            self._trouble_since = time.monotonic()
        left = self._left()
        if left <= 0:
            self._give_up_all(error)
        else:
            time.sleep(min(self._next_pause(), left))

    def _give_up_all(self, error: AccessRefused | BrokerUnavailable | Refused) -> None:
        waiting, self._due, self._later = [*self._due, *self._later], deque(), []
        for entry in waiting:
            # The error may name the message upon which it was found, which comes first then.
            reason = str(error).removeprefix(f"{waiting[0].outgoing.describe()}: ")
            entry.given_up = type(error)(f"{entry.outgoing.describe()}: {reason}")
            entry.given_up.__cause__ = error

    def _left(self) -> float:
        """Return how many seconds of the patience are left for a broker that takes nothing."""
        patience = self._patience.publish if self._reached else self._patience.connect
        if self._trouble_since is None:
            return patience.total_seconds()
        return self._trouble_since + patience.total_seconds() - time.monotonic()

    def _is_over_for(self, entry: _Entry) -> bool:
        """Whether an address has refused for longer than the patience; its clock starts with the first."""
        address = (entry.outgoing.exchange, entry.outgoing.routing_key)
        since = self._full_since.setdefault(address, time.monotonic())
        return time.monotonic() - since > self._patience.publish.total_seconds()

    def _next_pause(self) -> float:
        """Return a growing pause in seconds, drawn at random so that publishers do not come back together."""
        self._pauses += 1
        return random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**self._pauses))  # noqa: S311


def _is_connection_loss(exc: Exception) -> bool:
    """Whether the connection ended for no fault of a message: it broke, or the broker was shut down."""
    return isinstance(exc, amqp.exceptions.RecoverableConnectionError | amqp.exceptions.ConnectionForced)
