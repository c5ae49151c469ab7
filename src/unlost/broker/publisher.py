"""The confirming publisher: a publish that returns is a message the broker has taken over.

Publisher confirms, ``mandatory``, delivery tags matched to messages, a confirm timeout that always
exists (https://www.rabbitmq.com/docs/confirms). A channel about which anything is in doubt is thrown
away. An attempt whose confirm did not come is repeated under the same message id: the consumer's ledger
absorbs the copy.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import amqp
from kombu import Connection
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from unlost.broker.connection import open_connection, where
from unlost.broker.errors import (
    AccessRefused,
    BrokerUnavailable,
    ConfirmUnknown,
    InvalidMessage,
    Refused,
    Unroutable,
)
from unlost.broker.frames import Frames
from unlost.core.message import Outgoing
from unlost.errors import BrokerError

#: Longest and shortest time for one connection; in between it is what is left of the patience.
CONNECT_TIMEOUT = timedelta(seconds=5)
SHORTEST_CONNECT_TIMEOUT = timedelta(seconds=1)

#: After this long without a confirm a link asks whether the broker reads. In a burst the confirms tell.
SILENCE = timedelta(milliseconds=200)

#: What py-amqp raises for a connection or a channel that is not there any more.
_LOST = (OSError, amqp.exceptions.AMQPError)

#: What py-amqp raises for values that do not fit into a frame, before it writes a byte of it.
_UNENCODABLE = (amqp.exceptions.FrameSyntaxError, struct.error, ValueError, TypeError, OverflowError)


class Publisher:
    """Publishes messages one at a time and returns when each is confirmed. Safe across threads and forks.

    Args:
        source: Connection parameters; several hosts (``url;url``) are tried in turn.
        confirm_timeout: How long to wait for one confirm before the channel is given up.
        patience: How long to go on trying once the broker was reached.
        connect_patience: How long to go on trying while nothing could be sent at all.
        confirms: Off only for the runs that prove that confirms are needed.
    """

    def __init__(
        self,
        source: Connection,
        *,
        confirm_timeout: timedelta = timedelta(seconds=10),
        patience: timedelta = timedelta(seconds=30),
        connect_patience: timedelta = timedelta(seconds=8),
        confirms: bool = True,
    ) -> None:
        self._source = source
        self._confirm_timeout = confirm_timeout
        self._patience = patience
        self._connect_patience = connect_patience
        self._confirms = confirms
        self._pool = _Pool()

    def __repr__(self) -> str:
        return f"Publisher({where(self._source)})"

    def publish(self, message: Outgoing, *, patience: timedelta | None = None) -> None:
        """Publish a message and return when the broker has confirmed that it is queued.

        Args:
            message: What to publish; its AMQP message id stays the same over all attempts.
            patience: How long to go on trying, reached or not; the publisher's own when not given.

        Raises:
            Unroutable: No queue is bound, or the exchange does not exist; nothing is stored.
            Refused: A queue refused it, or the broker blocks publishers; nothing is stored there.
            InvalidMessage: The broker cannot take it as it is; nothing is stored.
            AccessRefused: Wrong user, password, vhost or permission.
            BrokerUnavailable: No connection; nothing was sent.
            ConfirmUnknown: An attempt went out and no confirm came.

        Crash safety:
            A crash before the return leaves the message stored or not; publish again under the same id.
        """
        attempts = _Attempts(
            patience=(patience or self._patience).total_seconds(),
            connect_patience=(patience or self._connect_patience).total_seconds(),
        )
        retrying = Retrying(
            retry=retry_if_exception_type((BrokerUnavailable, Refused, ConfirmUnknown)),
            stop=attempts.are_over,
            wait=wait_random_exponential(multiplier=0.1, max=1),
            reraise=True,
        )
        with attempts.judged():
            for attempt in retrying:
                with attempt, attempts.remembered():
                    self._publish_once(message, attempts.time_to_connect())

    def _publish_once(self, message: Outgoing, connect_timeout: timedelta) -> None:
        link = self._pool.take() or self._connect(connect_timeout)
        try:
            link.publish(message, self._confirm_timeout, confirm=self._confirms)
        except BrokerUnavailable:
            # Found dead. So are the other idle ones, as a rule: a broker that restarted closed them all.
            link.close()
            self.close()
            raise
        except BaseException:
            # Whatever it was, the channel may be closed or owe us a confirm: never use it again.
            link.close()
            raise
        self._pool.put(link)

    def _connect(self, timeout: timedelta) -> _Link:
        try:
            return _Link(self._source, timeout, self._confirm_timeout)
        except BrokerUnavailable:
            self._source.maybe_switch_next()
            raise

    def close(self) -> None:
        """Close the idle connections."""
        while link := self._pool.take():
            link.close()


class _Attempts:
    """What is known of a message after several attempts: one unknown among them makes all unknown."""

    def __init__(self, *, patience: float, connect_patience: float) -> None:
        self._patience = patience
        self._connect_patience = connect_patience
        self._began = time.monotonic()
        self._reached = False
        self._unknown: ConfirmUnknown | None = None

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """Note what an attempt tells about the broker and the message."""
        try:
            yield
        except ConfirmUnknown as exc:
            self._reached, self._unknown = True, exc
            raise
        except Refused:
            self._reached = True
            raise

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Raise the unknown in place of a later failure: that one proves nothing about earlier copies."""
        try:
            yield
        except BrokerError as exc:
            if self._unknown is None or exc is self._unknown:
                raise
            raise self._unknown from exc

    def are_over(self, _: RetryCallState) -> bool:
        return self._left() <= 0

    def time_to_connect(self) -> timedelta:
        return min(max(timedelta(seconds=self._left()), SHORTEST_CONNECT_TIMEOUT), CONNECT_TIMEOUT)

    def _left(self) -> float:
        patience = self._patience if self._reached else self._connect_patience
        return self._began + patience - time.monotonic()


class _Pool:
    """Idle links of this process. Links inherited over a fork are kept aside, never closed.

    Closing one, or letting it be collected, would shut down the socket that the parent still uses.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._idle: list[_Link] = []
        self._inherited: list[_Link] = []

    def take(self) -> _Link | None:
        self._leave_the_parent()
        with self._lock:
            return self._idle.pop() if self._idle else None

    def put(self, link: _Link) -> None:
        with self._lock:
            self._idle.append(link)

    def _leave_the_parent(self) -> None:
        if self._pid == os.getpid():
            return
        # The parent's lock may have been held by another thread at the fork: make a new one.
        self._lock = threading.Lock()
        self._inherited.extend(self._idle)
        self._idle = []
        # Last: from here on another thread of this process may take from the pool.
        self._pid = os.getpid()


class _Blocked(Exception):
    """Ends the wait for an answer that does not come while the broker is blocked."""


class _Link:
    """One connection with one channel in confirm mode, used by one thread at a time."""

    def __init__(self, source: Connection, connect_timeout: timedelta, patience: timedelta) -> None:
        self._place = where(source)
        self._blocked: str | None = None
        self._announcing = False
        self._confirmed_at = 0.0
        self._tag = 0
        self._settled: dict[int, bool] = {}
        self._returned: list[tuple[str, str, str, str]] = []
        self._connection = open_connection(
            source,
            connect_timeout=connect_timeout,
            patience=patience,
            on_blocked=self._on_blocked,
            on_unblocked=self._on_unblocked,
        )
        try:
            self._aside = self._connection.channel()
            self._channel = self._connection.channel()
            self._channel.confirm_select()
        except _LOST as exc:
            self.close()
            raise BrokerUnavailable(f"{self._place} closed the connection: {exc}") from exc
        self._channel.events["basic_ack"].add(self._on_ack)
        self._channel.events["basic_nack"].add(self._on_nack)
        self._channel.events["basic_return"].add(self._on_return)
        self._frames = Frames(self._connection)

    def publish(self, message: Outgoing, timeout: timedelta, *, confirm: bool) -> None:
        deadline = time.monotonic() + timeout.total_seconds()
        head, body = self._render(message)
        try:
            self._wait_until_unblocked(message, deadline)
            # Without a body the header is the whole message, and nothing can be announced.
            if body and time.monotonic() - self._confirmed_at > SILENCE.total_seconds():
                self._announce(head)
                head = b""
                self._wait_until_unblocked(message, deadline)
        except _LOST as exc:
            # Found dead before the body was sent: no reason for doubt.
            raise BrokerUnavailable(f"{message.describe()}: {self._lost(exc)}") from exc
        self._send(message, head + body)
        if confirm:
            self._await_confirm(message, deadline, timeout)

    def close(self) -> None:
        # The connection may be long dead; there is nothing to learn from how it closes.
        with suppress(*_LOST):
            self._connection.collect()

    def _render(self, message: Outgoing) -> tuple[Any, Any]:
        properties = {k: v for k, v in message.properties.items() if v is not None}
        content = amqp.Message(message.body, application_headers=dict(message.headers), **properties)
        try:
            return self._frames.of(self._channel.channel_id, message.exchange, message.routing_key, content)
        except _UNENCODABLE as exc:
            raise InvalidMessage(
                f"{message.describe()}: AMQP has no form for one of its headers, properties or names "
                f"({type(exc).__name__}): use names of at most 255 bytes, numbers of at most 64 "
                "bits, and headers that fit into a frame (128 KiB)"
            ) from exc

    def _wait_until_unblocked(self, message: Outgoing, deadline: float) -> None:
        while self._drain(0):
            pass
        while self._blocked is not None:
            if not self._drain(deadline - time.monotonic()):
                raise Refused(
                    f"{message.describe()}: {self._place} blocks publishers ({self._blocked}); it is short "
                    "of memory or disk"
                )

    def _announce(self, head: Any) -> None:
        """Write the content header, and wait until the broker answers behind it or says it is blocked.

        What is written while it does not read is stored when the alarm clears, long after the publisher
        has given it up; a header alone is not.
        """
        self._connection.transport.write(head)
        self._announcing = True
        with suppress(_Blocked):
            # Any request with an answer will do; this one changes nothing, and has its own channel because
            # the other one is in the middle of a message.
            self._aside.basic_qos(0, 0, False)
        self._announcing = False

    def _send(self, message: Outgoing, frames: Any) -> None:
        self._tag += 1
        try:
            self._connection.transport.write(frames)
        except _LOST as exc:
            raise ConfirmUnknown(f"{message.describe()}: {self._lost(exc)}", message) from exc

    def _await_confirm(self, message: Outgoing, deadline: float, timeout: timedelta) -> None:
        try:
            while self._tag not in self._settled:
                if not self._drain(deadline - time.monotonic()):
                    waited = f"{timeout.total_seconds():g} s"
                    raise ConfirmUnknown(f"{message.describe()}: no confirm within {waited}", message)
        except amqp.exceptions.NotFound as exc:
            raise Unroutable(f"{message.describe()}: {exc}. Apply the topology first.") from exc
        except amqp.exceptions.AccessRefused as exc:
            raise AccessRefused(f"{message.describe()}: {exc}") from exc
        except amqp.exceptions.PreconditionFailed as exc:
            # A body over max_message_size, a foreign user_id: no use in repeating it.
            raise InvalidMessage(f"{message.describe()}: {exc}. Make it smaller or correct it.") from exc
        except _LOST as exc:
            raise ConfirmUnknown(f"{message.describe()}: {self._lost(exc)}", message) from exc
        self._judge(message, acked=self._settled.pop(self._tag))

    def _judge(self, message: Outgoing, *, acked: bool) -> None:
        """A return comes before its ack, so by now both are here (RabbitMQ's docs on confirms)."""
        returned, self._returned = self._returned, []
        for exchange, routing_key, message_id, text in returned:
            if (exchange, routing_key, message_id) == (
                message.exchange,
                message.routing_key,
                message.message_id,
            ):
                raise Unroutable(
                    f"{message.describe()}: {text}; no queue is bound for it. "
                    "Declare the queue in the topology and apply it."
                )
        if not acked:
            raise Refused(f"{message.describe()}: nacked; its queue is full or not available")

    def _lost(self, exc: Exception) -> str:
        return f"the connection to {self._place} was lost: {exc}"

    def _drain(self, seconds: float) -> bool:
        """Handle what has arrived; false when nothing came in time."""
        try:
            self._connection.drain_events(timeout=max(0.0, seconds))
        except TimeoutError:
            return False
        return True

    def _on_ack(self, tag: int, _multiple: bool) -> None:
        self._settle(tag, acked=True)

    def _on_nack(self, tag: int, _multiple: bool) -> None:
        self._settle(tag, acked=False)

    def _settle(self, tag: int, *, acked: bool) -> None:
        # One message is outstanding at a time, so its tag is the last one, whether "multiple" or not.
        if tag == self._tag:
            self._settled[tag] = acked
            self._confirmed_at = time.monotonic()

    def _on_return(self, error: Exception, exchange: str, routing_key: str, message: amqp.Message) -> None:
        message_id = str(message.properties.get("message_id") or "")
        self._returned.append((exchange, routing_key, message_id, str(error)))

    def _on_blocked(self, reason: str) -> None:
        self._blocked = reason
        if self._announcing:
            raise _Blocked(reason)

    def _on_unblocked(self) -> None:
        self._blocked = None
