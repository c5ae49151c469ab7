"""Moves messages from one queue to another: each is confirmed in its new place before it leaves the old one.

A shovel would ack at its source what its destination returned as unroutable. Here a message is published
``mandatory``, and acked only after its confirm; a return, a nack or silence leaves it where it was. A crash
between confirm and ack leaves it in both places: at most a window of messages, in their order, delivered
again with ``redelivered`` set.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import amqp
from kombu import Connection

from unlost.broker.connection import open_connection, where
from unlost.broker.frames import Frames
from unlost.core.message import Outgoing
from unlost.errors import BrokerError, BrokerUnavailable, ConfirmUnknown, Refused, Unroutable

#: What py-amqp raises for a connection or a channel that is not there any more.
LOST = (OSError, amqp.exceptions.AMQPError)

#: Written by the broker for one delivery. "CC" would be obeyed: the default exchange would put a copy into
#: each queue it names (https://www.rabbitmq.com/docs/sender-selected).
_OF_THE_DELIVERY = frozenset({"x-delivery-count", "x-acquired-count", "CC"})
_DEATHS = ("x-death", "x-first-death-", "x-last-death-")


@dataclass(frozen=True, slots=True)
class Moved:
    """What a mover has done: messages that are in their new place, and how many had been delivered before."""

    messages: int = 0
    redelivered: int = 0


class Mover:
    """One consumer and one confirming publisher on one connection, in one thread.

    Args:
        broker: Where to connect.
        source: The queue to empty.
        target: The queue to fill, by way of the default exchange.
        window: How many messages may be under way; also how many a crash may double.
        keep_deaths: Keep ``x-death`` headers. RabbitMQ before 4.0 takes them for its own, and would then drop
            a message that its delay path has seen before as caught in a cycle.
        patience: How long to wait for a confirm, or for a socket.

    Raises:
        BrokerUnavailable: No connection.
        AccessRefused: Wrong user, password or vhost.
    """

    def __init__(
        self,
        broker: Connection,
        source: str,
        target: str,
        *,
        window: int,
        keep_deaths: bool,
        patience: timedelta = timedelta(seconds=30),
    ) -> None:
        self._source, self._target = source, target
        self._keep_deaths = keep_deaths
        self._patience = patience
        self._place = where(broker)
        self._arrived: deque[amqp.Message] = deque()
        self._published = 0
        self._pending: dict[int, tuple[int, bool]] = {}
        self._refused = 0
        self._last_confirm = time.monotonic()
        self._moved = Moved()
        self._connection = open_connection(
            broker, connect_timeout=timedelta(seconds=5), patience=patience, on_blocked=self._on_blocked
        )
        try:
            with self._lost_is_unavailable():
                self._open(window)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, window: int) -> None:
        self._publishing = self._connection.channel()
        self._frames = Frames(self._connection, self._publishing.channel_id)
        self._publishing.confirm_select()
        self._publishing.events["basic_ack"].add(self._on_ack)
        self._publishing.events["basic_nack"].add(self._on_nack)
        self._publishing.events["basic_return"].add(self._on_return)
        self._consuming = self._connection.channel()
        # A body is moved as it is, whatever its content encoding says.
        self._consuming.auto_decode = False
        self._consuming.basic_qos(0, window, False)
        self._consuming.basic_consume(self._source, callback=self._arrived.append, on_cancel=self._on_cancel)

    def run(self, duration: timedelta) -> Moved:
        """Move what there is for so long, and return what has been moved since the last call or :meth:`take`.

        Raises:
            Unroutable: The target is gone; nothing was acked for it.
            Refused: The target is full or not available; what it refused stays in the source.
            ConfirmUnknown: No confirm came in time.
            BrokerUnavailable: The connection was lost.
            BrokerError: The source was deleted, or the broker refuses a message.

        Crash safety:
            What was confirmed and not yet acked is in both queues.
        """
        deadline = time.monotonic() + duration.total_seconds()
        with self._lost_is_unavailable():
            while (left := deadline - time.monotonic()) > 0:
                with suppress(TimeoutError):
                    self._connection.drain_events(timeout=left)
                # Not within a callback: a publish of py-amqp's reads, and so handles, the next delivery.
                self._forward()
                self._check()
        return self.take()

    def take(self) -> Moved:
        """Return what has been moved and not been told yet; also after an error."""
        moved, self._moved = self._moved, Moved()
        return moved

    def close(self) -> None:
        """Close the connection; what is not acked returns to the source."""
        with suppress(*LOST):
            self._connection.collect()

    def _forward(self) -> None:
        """Publish what has arrived, in its order; once something was refused, the rest stays unacked."""
        while self._arrived and not self._refused:
            message = self._arrived.popleft()
            if not self._pending:
                self._last_confirm = time.monotonic()
            self._published += 1
            self._pending[self._published] = (
                message.delivery_tag,
                bool(message.delivery_info["redelivered"]),
            )
            head, body = self._frames.of(self._copy(message))
            self._connection.transport.write(head + body)

    def _copy(self, message: amqp.Message) -> Outgoing:
        properties = dict(message.properties)
        headers: Mapping[str, Any] = properties.pop("application_headers", None) or {}
        return Outgoing(
            exchange="",
            routing_key=self._target,
            body=message.body,
            headers={name: value for name, value in headers.items() if self._is_kept(str(name))},
            properties=properties,
        )

    def _is_kept(self, header: str) -> bool:
        if header in _OF_THE_DELIVERY:
            return False
        return self._keep_deaths or not header.startswith(_DEATHS)

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self._last_confirm = time.monotonic()
        messages = redelivered = 0
        for each in self._covered(tag, multiple):
            delivery, again = self._pending.pop(each)
            self._consuming.basic_ack(delivery)
            messages += 1
            redelivered += again
        self._moved = Moved(self._moved.messages + messages, self._moved.redelivered + redelivered)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        self._last_confirm = time.monotonic()
        for each in self._covered(tag, multiple):
            del self._pending[each]
            self._refused += 1

    def _covered(self, tag: int, multiple: bool) -> list[int]:
        if multiple:
            return [each for each in self._pending if each <= tag]
        return [tag] if tag in self._pending else []

    def _on_return(self, error: Exception, *_: object) -> None:
        # Raised before the ack that follows a return is read, so that nothing is acked at the source.
        raise Unroutable(f"queue {self._target!r} is gone ({error}); create it again and go on")

    def _on_cancel(self, _tag: str) -> None:
        raise BrokerError(
            f"the broker ended the consumer of {self._source!r}: the queue was deleted or moved"
        )

    def _on_blocked(self, _reason: str) -> None:
        """Nothing to do: the window bounds what is written meanwhile, and confirms come when it clears."""

    def _check(self) -> None:
        if self._refused and not self._pending:
            raise Refused(
                f"queue {self._target!r} refused {self._refused} messages: it is full or not available; they "
                f"stay in {self._source!r}"
            )
        if self._pending and time.monotonic() - self._last_confirm > self._patience.total_seconds():
            raise ConfirmUnknown(f"{len(self._pending)} messages to {self._target!r} were not confirmed")

    @contextmanager
    def _lost_is_unavailable(self) -> Iterator[None]:
        try:
            yield
        except amqp.exceptions.PreconditionFailed as exc:
            raise BrokerError(
                f"the broker does not take a message of {self._source!r}: {exc}. Its user_id needs a user "
                "with the tag impersonator, its size a larger max_message_size"
            ) from exc
        except (amqp.exceptions.NotFound, amqp.exceptions.ResourceLocked) as exc:
            raise BrokerError(f"queue {self._source!r} cannot be consumed: {exc}") from exc
        except amqp.exceptions.AccessRefused as exc:
            raise BrokerError(
                f"{exc}: moving needs read on {self._source!r} and write on amq.default"
            ) from exc
        except LOST as exc:
            raise BrokerUnavailable(f"the connection to {self._place} was lost: {exc}") from exc
