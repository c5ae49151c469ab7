"""Holding the letters of a queue: seen by us, delivered to nobody else meanwhile, and given back in order.

RabbitMQ has no way over AMQP to read a queue without taking from it. What a client takes and does not
settle comes back when its channel closes, and that has three traps, measured on 3.10, 4.0 and 4.3:

* A letter given back goes *behind* the others (3.10 and 4.0 without a delivery limit), or behind all that
  were ever given back (4.3). So whoever gives back ten letters of a million has moved ten letters, and
  whoever gives back a window before taking the next one sees the first again, or never ends. The order is
  kept only by taking all and giving back all, in order.
* One consumer takes at most 65,535, and several consumers of one channel come back in the order of the
  consumers. So there is one channel for each window, and windows are given back one after the other.
* A channel that closes counts against a letter. A ``basic.nack`` does not on RabbitMQ ≥ 4.3; before, it
  does: see :mod:`unlost.deadletter.guard`.

A process that is killed while it holds letters loses none: the broker takes them all back, perhaps in
another order.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self

import amqp
from kombu import Connection

from unlost.broker.connection import open_connection, where
from unlost.deadletter.letter import DeadLetter
from unlost.deadletter.readahead import ReadAhead
from unlost.errors import AccessRefused, BrokerUnavailable, DeadLetterError, QueueMissing

#: Letters of one channel. The broker sends so many ahead, so this times their size is in its buffers; and
#: it searches a channel's letters one by one when one of them is acked behind others that are kept.
WINDOW = 4000

#: After so long without a letter we ask the queue whether there are more.
SILENCE = timedelta(milliseconds=200)

#: How long to wait for letters that the queue has and does not hand out.
STALL = timedelta(seconds=60)

#: No letter is held for longer: after 30 minutes the broker takes an unsettled delivery for stuck
#: (https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout).
LONGEST = timedelta(minutes=20)

#: Others who consume are served first.
_PRIORITY = {"x-priority": -10}

_LOST = (OSError, amqp.exceptions.AMQPError)


@dataclass(eq=False)
class Pane:
    """One channel with one consumer: how many letters it holds, and how many of them are to stay."""

    channel: Any
    consumer: str = ""
    taken: int = 0
    kept: int = 0


@dataclass(frozen=True, eq=False)
class Held:
    """A letter that we hold; settle it with :meth:`Hold.ack` or :meth:`Hold.keep`."""

    letter: DeadLetter
    pane: Pane = field(repr=False)
    tag: int


class Hold:
    """Takes letters in order; gives back at the end, in order, all that were not acked.

    Args:
        source: Where the broker is; only its parameters are used.
        queue: Which queue.
        window: Letters of one channel.
        patience: How long one answer of the broker may take.
        longest: How long letters are held; then the iteration ends early.

    Attributes:
        ready: How many letters the queue said it had at the start; 0 for a moment after a restart.
        is_cut: Whether the iteration ended because it had taken too long.

    Raises:
        QueueMissing: There is no such queue.
        AccessRefused: The user may not read it.
        BrokerUnavailable: No connection.
    """

    def __init__(
        self,
        source: Connection,
        queue: str,
        *,
        window: int = WINDOW,
        patience: timedelta = timedelta(seconds=30),
        longest: timedelta = LONGEST,
    ) -> None:
        self.queue = queue
        self.is_cut = False
        self._until = time.monotonic() + longest.total_seconds()
        self._window = window
        self._place = where(source)
        self._arrived: deque[tuple[Pane, Any]] = deque()
        self._panes: list[Pane] = []
        self._cancelled = False
        self._connection = open_connection(source, connect_timeout=timedelta(seconds=5), patience=patience)
        self._ahead = ReadAhead(self._connection)
        with self._closing_on_error(), self._translated():
            self._aside = self._connection.channel()
            self.ready = int(self._aside.queue_declare(queue, passive=True).message_count)
            self._open_pane()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def letters(self, most: int | None = None) -> Iterator[Held]:
        """Yield letters until the queue has no more to give.

        Args:
            most: End after so many, whatever is left; ``None`` goes on to the end.

        Raises:
            QueueMissing: The queue was deleted.
            BrokerUnavailable: The connection was lost; the broker has all letters again.
            DeadLetterError: The queue has letters and hands out none.
        """
        taken = 0
        while most is None or taken < most:
            if time.monotonic() >= self._until:
                self.is_cut = True
                return
            held = self._next()
            if held is None:
                return
            taken += 1
            yield held

    def keep(self, held: Held) -> None:
        """Note that a letter stays: it is given back at the end."""
        held.pane.kept += 1

    def ack(self, batch: Sequence[Held]) -> None:
        """Remove letters from the queue for good.

        Everything before the last of them must be acked, kept, or in the batch.
        """
        panes: dict[Pane, list[int]] = {}
        for held in batch:
            panes.setdefault(held.pane, []).append(held.tag)
        with self._translated():
            for pane, tags in panes.items():
                if pane.kept:
                    for tag in tags:
                        pane.channel.basic_ack(tag)
                else:
                    pane.channel.basic_ack(max(tags), multiple=True)
                pane.taken -= len(tags)

    def close(self) -> None:
        """Give back what is held, in order, and close the connection.

        Errors are not raised: without a connection the broker takes the letters back by itself.
        """
        with suppress(*_LOST):
            # All first: what one gives back would go straight to another that still consumes.
            for pane in self._panes:
                pane.channel.callbacks[pane.consumer] = _ignore
                pane.channel.basic_cancel(pane.consumer)
            for pane in self._panes:
                self._give_back(pane)
            self._connection.close()
        with suppress(*_LOST):
            self._connection.collect()

    def _give_back(self, pane: Pane) -> None:
        # What was sent ahead and never looked at goes back as well: tag 0 is "all of them".
        pane.channel.send_method(amqp.spec.Basic.Nack, "Lbb", (0, True, True))
        # An answer from the queue itself: what was given back lies there before the next window follows.
        pane.channel.queue_declare(self.queue, passive=True)

    def _next(self) -> Held | None:
        waited = time.monotonic()
        while not self._arrived:
            if all(pane.taken >= self._window for pane in self._panes):
                with self._translated():
                    self._open_pane()
            if self._drained():
                continue
            if self._cancelled:
                raise QueueMissing(f"queue {self.queue!r} was deleted while its letters were read")
            if self._is_empty():
                return None
            if time.monotonic() - waited > STALL.total_seconds():
                raise DeadLetterError(
                    f"queue {self.queue!r} at {self._place} has letters and hands out none: another consumer "
                    "may hold it exclusively (single active consumer); stop that one first"
                )
        pane, message = self._arrived.popleft()
        return Held(self._letter(message), pane, message.delivery_tag)

    def _open_pane(self) -> None:
        channel = self._connection.channel()
        # A body is kept as it came, whatever its content encoding says.
        channel.auto_decode = False
        pane = Pane(channel)
        channel.basic_qos(0, self._window, False)
        self._panes.append(pane)
        pane.consumer = channel.basic_consume(
            self.queue,
            callback=lambda message: self._arrive(pane, message),
            on_cancel=self._on_cancel,
            arguments=_PRIORITY,
        )

    def _arrive(self, pane: Pane, message: Any) -> None:
        pane.taken += 1
        self._arrived.append((pane, message))

    def _on_cancel(self, _tag: str) -> None:
        self._cancelled = True

    def _drained(self) -> bool:
        try:
            self._connection.drain_events(timeout=SILENCE.total_seconds())
            self._ahead.dispatch()
        except TimeoutError:
            return False
        except _LOST as exc:
            raise self._lost(exc) from exc
        return not self._cancelled

    def _is_empty(self) -> bool:
        """Ask the queue itself: counts are late, above all after a restart."""
        with self._translated():
            pane = self._panes[-1]
            message = pane.channel.basic_get(self.queue)
        if message is not None:
            self._arrive(pane, message)
            return False
        return not self._arrived

    def _letter(self, message: Any) -> DeadLetter:
        properties = dict(message.properties)
        headers = properties.pop("application_headers", None)
        return DeadLetter(
            queue=self.queue,
            exchange=message.delivery_info.get("exchange") or "",
            routing_key=message.delivery_info.get("routing_key") or "",
            # py-amqp gives a message without a body the empty text.
            body=message.body or b"",
            headers=headers or {},
            properties=properties,
        )

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with suppress(*_LOST):
                self._connection.collect()
            raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except amqp.exceptions.NotFound as exc:
            raise QueueMissing(
                f"there is no queue {self.queue!r} at {self._place}: {exc}. Check the name and the vhost; "
                "`unlost dlq list` shows those there are"
            ) from exc
        except amqp.exceptions.AccessRefused as exc:
            raise AccessRefused(
                f"the user may not read queue {self.queue!r} at {self._place}: {exc}. "
                "Grant it the read permission on the queue."
            ) from exc
        except _LOST as exc:
            raise self._lost(exc) from exc

    def _lost(self, exc: Exception) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"the connection to {self._place} was lost while letters of {self.queue!r} were held: {exc}. "
            "The broker has them all again."
        )


def _ignore(_message: Any) -> None:
    """Take what arrives between the wish to stop and its answer; it is given back with the others."""
