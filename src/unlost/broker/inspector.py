"""What AMQP itself tells and does at once: how deep a queue is, who consumes it, unbinding, deleting.

The management API's totals are seconds old, and it can only delete a queue that is empty and unused by
looking first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import amqp
from kombu import Connection

from unlost.broker.connection import open_connection, where
from unlost.broker.mover import LOST
from unlost.errors import AccessRefused, BrokerError, BrokerUnavailable
from unlost.topology.objects import Binding

_PATIENCE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Depth:
    """Messages that are ready, and consumers, at this moment."""

    ready: int
    consumers: int


class Inspector:
    """One connection for questions and deletions; opened when it is needed, and again when it was lost.

    All methods raise :class:`BrokerUnavailable` when the broker does not answer, and
    :class:`AccessRefused` when the user may not do it.

    Args:
        broker: Where to connect.
    """

    def __init__(self, broker: Connection) -> None:
        self._broker = broker
        self._connection: Any = None

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            with suppress(*LOST):
                self._connection.collect()
            self._connection = None

    def depth(self, queue: str) -> Depth | None:
        """Return what is ready in a queue and how many consume it, ``None`` if there is no such queue.

        Not counted: what consumers hold, delayed retries, pending dead letters.

        Raises:
            BrokerError: It is another connection's exclusive queue.
        """
        with self._channel() as channel:
            try:
                found = channel.queue_declare(queue, passive=True)
            except amqp.exceptions.NotFound:
                return None
            except amqp.exceptions.ResourceLocked as exc:
                raise BrokerError(f"queue {queue!r} belongs to one connection alone: {exc}") from exc
        return Depth(found.message_count, found.consumer_count)

    def unbind(self, route: Binding) -> None:
        """Remove a route; without effect if it is gone."""
        with self._channel() as channel:
            if route.destination_type == "queue":
                channel.queue_unbind(
                    route.destination, route.source, route.routing_key, arguments=dict(route.arguments)
                )
            else:
                channel.exchange_unbind(
                    route.destination, route.source, route.routing_key, arguments=dict(route.arguments)
                )

    def delete_queue(self, queue: str, *, only_empty: bool) -> int:
        """Delete a queue that nobody consumes, and return how many messages went with it.

        Args:
            queue: Its name; nothing happens if it is gone.
            only_empty: Let the broker refuse if it is consumed or not empty. Quorum queues do not know that
                (540 NOT_IMPLEMENTED), so their caller looks first.

        Raises:
            BrokerUnavailable: It is consumed, or not empty: try again later.
        """
        with self._channel() as channel:
            try:
                return int(channel.queue_delete(queue, if_unused=only_empty, if_empty=only_empty))
            except amqp.exceptions.NotFound:
                return 0
            except amqp.exceptions.PreconditionFailed as exc:
                raise BrokerUnavailable(f"queue {queue!r} is in use or not empty: {exc}") from exc

    def delete_exchange(self, exchange: str) -> None:
        """Delete an exchange with its routes; without effect if it is gone."""
        with self._channel() as channel, suppress(amqp.exceptions.NotFound):
            channel.exchange_delete(exchange)

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        """Open a channel of its own for each request: an error closes it."""
        try:
            if self._connection is None or not self._connection.connected:
                self.close()
                self._connection = open_connection(
                    self._broker, connect_timeout=timedelta(seconds=5), patience=_PATIENCE
                )
            channel = self._connection.channel()
            yield channel
            if channel.is_open:
                channel.close()
        except amqp.exceptions.AccessRefused as exc:
            raise AccessRefused(
                f"{where(self._broker)}: {exc}; migrating needs configure, write and read"
            ) from exc
        except LOST as exc:
            self.close()
            raise BrokerUnavailable(f"the connection to {where(self._broker)} was lost: {exc}") from exc
