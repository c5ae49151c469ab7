"""One connection with one channel in confirm mode: what is written on it, and what the broker answers."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import amqp
from kombu import Connection

from unlost.broker.confirms import OutOfStep, Unconfirmed
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

#: After this long without a confirm a link asks whether the broker reads. In a burst the confirms tell.
SILENCE = timedelta(milliseconds=200)

#: What ends a connection or a channel: py-amqp's and the system's errors, and an answer that makes no sense.
LOST = (OSError, amqp.exceptions.AMQPError, OutOfStep)

#: What py-amqp raises for values that do not fit into a frame, before it writes a byte of it.
_UNENCODABLE = (
    amqp.exceptions.FrameSyntaxError,
    struct.error,
    ValueError,
    TypeError,
    OverflowError,
    LookupError,
    RecursionError,
)

#: What a return can be matched by: exchange, routing key and message id. The id alone mis-assigns.
Address = tuple[str, str, str]


@dataclass(slots=True, eq=False)
class Sending:
    """A message on its way.

    ``answered`` once the broker has spoken of it; ``error`` says why the answer was no confirm. ``sent_at``
    is the moment of the monotonic clock at which its first byte may have left.
    """

    outgoing: Outgoing
    answered: bool = False
    error: BrokerError | None = None
    sent_at: float = 0.0

    @property
    def address(self) -> Address:
        """Return what the broker repeats when it returns the message."""
        return (self.outgoing.exchange, self.outgoing.routing_key, self.outgoing.message_id)


class _Blocked(Exception):
    """Ends the wait for an answer that does not come while the broker is blocked."""


class Link:
    """A connection to publish on, used by one thread of one process at a time.

    Args:
        source: Where to.
        connect_timeout: How long to wait for TCP, TLS and login.
        patience: How long one read or write may take.

    Raises:
        AccessRefused: Wrong user, password or vhost.
        BrokerUnavailable: Nobody answered in time.
    """

    def __init__(self, source: Connection, connect_timeout: timedelta, patience: timedelta) -> None:
        self.pid = os.getpid()
        self.place = where(source)
        self.blocked: str | None = None
        #: Messages whose answer was no confirm, in the order of the answers; whoever reads them takes them.
        self.complaints: list[Sending] = []
        #: Exchanges that took a message on this channel, so that they exist and may be written to.
        self.proven: set[str] = set()
        #: When the broker last went on reading, by the monotonic clock.
        self.unblocked_at = 0.0
        self._announcing = False
        self._confirmed_at = 0.0
        self._unconfirmed: Unconfirmed[Sending] = Unconfirmed()
        self._buffer = bytearray()
        self._buffered: list[Sending] = []
        self._returned: dict[Address, list[str]] = {}
        self._doubted: list[Sending] = []
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
        except LOST as exc:
            self.close()
            raise BrokerUnavailable(f"{self.place} closed the connection: {exc}") from exc
        self._channel.events["basic_ack"].add(self._on_ack)
        self._channel.events["basic_nack"].add(self._on_nack)
        self._channel.events["basic_return"].add(self._on_return)
        self._frames = Frames(self._connection, self._channel.channel_id)

    @property
    def unconfirmed(self) -> Sequence[Sending]:
        """Return what was written and not answered, or answered and perhaps returned."""
        return [*self._unconfirmed, *self._doubted]

    @property
    def unwritten(self) -> Sequence[Sending]:
        """Return what is rendered and of which no more than an announcement has left."""
        return self._buffered

    @property
    def awaits_answers(self) -> bool:
        """Whether anything was written and not answered."""
        return bool(self._unconfirmed)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is on its way."""
        return not (self._buffered or self._unconfirmed or self._doubted)

    @property
    def is_settling(self) -> bool:
        """Whether a message came back and it cannot be said which until all others are answered."""
        return bool(self._returned)

    @property
    def buffered_bytes(self) -> int:
        """Return how much is rendered and not written."""
        return len(self._buffer)

    def publish(self, message: Outgoing, timeout: timedelta, *, confirm: bool) -> None:
        """Publish one message and wait for its confirm; on any error the link is of no more use.

        Raises:
            BrokerError: As for :meth:`unlost.broker.publisher.Publisher.publish`, for one attempt.
        """
        deadline = time.monotonic() + timeout.total_seconds()
        sending = Sending(message)
        self.render(sending, deadline)
        try:
            self.flush()
        except LOST as exc:
            raise ConfirmUnknown(f"{message.describe()}: {self.lost(exc)}", message) from exc
        if confirm:
            self._await_answer(sending, deadline, timeout)

    def render(self, sending: Sending, deadline: float) -> None:
        """Put a message into the buffer; if nothing is on its way, see first that the broker reads.

        Args:
            sending: The message.
            deadline: Until when a broker that blocks publishers is waited for, by the monotonic clock.

        Raises:
            InvalidMessage: AMQP cannot carry it. The link stays good.
            Refused: The broker blocks publishers; not a byte of the body was written.
            BrokerUnavailable: The connection was found dead; not a byte of the body was written.
        """
        head, body = self._render(sending.outgoing)
        if self.is_idle:
            head = self._ask_whether_it_reads(sending.outgoing, head, body, deadline)
        self._buffer += head
        self._buffer += body
        self._buffered.append(sending)

    def flush(self) -> None:
        """Write the buffer. From here on its messages are in doubt until they are answered.

        Raises:
            OSError, AMQPError: The connection is lost.
        """
        if not self._buffered:
            return
        now = time.monotonic()
        for sending in self._buffered:
            sending.sent_at = now
            self._unconfirmed.sent(sending)
        buffer, self._buffer, self._buffered = self._buffer, bytearray(), []
        self._connection.transport.write(buffer)

    def oldest(self) -> Sending:
        """Return what waits for an answer for the longest time; there must be one."""
        return self._unconfirmed.oldest()

    def drain(self, seconds: float) -> bool:
        """Handle one thing that has arrived; false when nothing came in time.

        Raises:
            OSError, AMQPError, OutOfStep: The channel is of no more use.
        """
        try:
            self._connection.drain_events(timeout=max(0.0, seconds))
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Close the connection without a word; what is on its way stays in doubt."""
        # It may be long dead; there is nothing to learn from how it closes.
        with suppress(*LOST):
            self._connection.collect()

    def lost(self, exc: Exception) -> str:
        """Return a sentence on a connection that failed."""
        return f"the connection to {self.place} was lost: {exc}"

    def explain(self, message: Outgoing, exc: Exception) -> BrokerError:
        """Return what the end of the channel says of the only message that was on its way."""
        if isinstance(exc, amqp.exceptions.NotFound):
            return Unroutable(f"{message.describe()}: {exc}. Apply the topology first.")
        if isinstance(exc, amqp.exceptions.AccessRefused):
            return AccessRefused(f"{message.describe()}: {exc}")
        if isinstance(exc, amqp.exceptions.PreconditionFailed):
            # A body over max_message_size, a foreign user_id: no use in repeating it.
            return InvalidMessage(f"{message.describe()}: {exc}. Make it smaller or correct it.")
        return ConfirmUnknown(f"{message.describe()}: {self.lost(exc)}", message)

    def _render(self, message: Outgoing) -> tuple[bytes, bytes]:
        try:
            return self._frames.of(message)
        except _UNENCODABLE as exc:
            raise InvalidMessage(
                f"{message.describe()}: AMQP has no form for one of its headers, properties or names "
                f"({type(exc).__name__}): use names of at most 255 bytes, numbers of at most 64 "
                "bits, and headers that fit into a frame (128 KiB)"
            ) from exc

    def _ask_whether_it_reads(self, message: Outgoing, head: bytes, body: bytes, deadline: float) -> bytes:
        """Return what of the head is still to be written."""
        try:
            self._wait_until_unblocked(message, deadline)
            # Without a body the header is the whole message, and nothing can be announced.
            if body and time.monotonic() - self._confirmed_at > SILENCE.total_seconds():
                self._announce(head)
                head = b""
                self._wait_until_unblocked(message, deadline)
        except LOST as exc:
            # Found dead before the body was sent: no reason for doubt.
            raise BrokerUnavailable(f"{message.describe()}: {self.lost(exc)}") from exc
        return head

    def _wait_until_unblocked(self, message: Outgoing, deadline: float) -> None:
        while self.drain(0):
            pass
        while self.blocked is not None:
            if not self.drain(deadline - time.monotonic()):
                raise Refused(
                    f"{message.describe()}: {self.place} blocks publishers ({self.blocked}); it is short "
                    "of memory or disk"
                )

    def _announce(self, head: bytes) -> None:
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

    def _await_answer(self, sending: Sending, deadline: float, timeout: timedelta) -> None:
        message = sending.outgoing
        try:
            while not sending.answered:
                if not self.drain(deadline - time.monotonic()):
                    waited = f"{timeout.total_seconds():g} s"
                    raise ConfirmUnknown(f"{message.describe()}: no confirm within {waited}", message)
        except LOST as exc:
            raise self.explain(message, exc) from exc
        if sending.error is not None:
            raise sending.error

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self._on_answer(tag, multiple, acked=True)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        self._on_answer(tag, multiple, acked=False)

    def _on_answer(self, tag: int, multiple: bool, *, acked: bool) -> None:
        self._confirmed_at = time.monotonic()
        for sending in self._unconfirmed.confirmed(tag, multiple=multiple):
            if self._returned and sending.address in self._returned:
                self._doubted.append(sending)
            elif acked:
                sending.answered = True
            else:
                text = f"{sending.outgoing.describe()}: nacked; its queue is full or not available"
                self._complain(sending, Refused(text))
        if self._returned and not self._unconfirmed:
            self._judge_returned()

    def _judge_returned(self) -> None:
        """Say which messages came back, now that all are answered: a return comes before its ack.

        Where several of one address were on their way and only some came back, nobody can say which.
        """
        returned, self._returned = self._returned, {}
        doubted, self._doubted = self._doubted, []
        for sending in doubted:
            message = sending.outgoing
            texts = returned[sending.address]
            if len(texts) == sum(other.address == sending.address for other in doubted):
                text = (
                    f"{texts[0]}; no queue is bound for it. Declare the queue in the topology and apply it."
                )
                self._complain(sending, Unroutable(f"{message.describe()}: {text}"))
            else:
                text = f"{message.describe()}: it, or another of the same id and address, was returned"
                self._complain(sending, ConfirmUnknown(text, message))

    def _complain(self, sending: Sending, error: BrokerError) -> None:
        sending.error = error
        sending.answered = True
        self.complaints.append(sending)

    def _on_return(self, error: Exception, exchange: str, routing_key: str, message: amqp.Message) -> None:
        address = (exchange, routing_key, str(message.properties.get("message_id") or ""))
        if not any(sending.address == address for sending in self._unconfirmed):
            raise OutOfStep(f"a message to exchange {exchange!r} came back that is not outstanding")
        self._returned.setdefault(address, []).append(str(error))

    def _on_blocked(self, reason: str) -> None:
        self.blocked = reason
        if self._announcing:
            raise _Blocked(reason)

    def _on_unblocked(self) -> None:
        self.blocked = None
        self.unblocked_at = time.monotonic()
