"""Watching sent-back messages die again.

A queue of our own, exclusive and gone with the connection, is bound to the exchange by which the letters
came: the broker copies every new letter into it at once, however many lie in the queue before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import amqp
from kombu import Connection

from unlost.broker.connection import open_connection, where
from unlost.deadletter.letter import DeadLetter
from unlost.errors import AccessRefused, BrokerUnavailable

_LOST = (OSError, amqp.exceptions.AMQPError)


class Watch:
    """New letters as they come in.

    Args:
        source: Where the broker is.
        patience: How long one answer of the broker may take.

    Raises:
        AccessRefused: The user may not declare a queue or bind it to the dead-letter exchange.
        BrokerUnavailable: No connection.
    """

    def __init__(self, source: Connection, *, patience: timedelta = timedelta(seconds=30)) -> None:
        self._place = where(source)
        self._followed: set[tuple[str, str]] = set()
        self._arrived: deque[Any] = deque()
        self._connection = open_connection(source, connect_timeout=timedelta(seconds=5), patience=patience)
        try:
            self._channel = self._connection.channel()
            self._queue = self._channel.queue_declare(exclusive=True, auto_delete=True).queue
            self._channel.basic_consume(self._queue, no_ack=True, callback=self._arrived.append)
        except amqp.exceptions.AccessRefused as exc:
            self.close()
            raise self._refused(exc) from exc
        except _LOST as exc:
            self.close()
            raise self._lost(exc) from exc

    def follow(self, exchange: str, routing_key: str) -> bool:
        """Watch what comes by an exchange and key; false for the default exchange, which binds nothing."""
        if (exchange, routing_key) in self._followed:
            return True
        if not exchange:
            return False
        try:
            self._channel.queue_bind(self._queue, exchange, routing_key)
        except amqp.exceptions.AccessRefused as exc:
            raise self._refused(exc) from exc
        except _LOST as exc:
            raise self._lost(exc) from exc
        self._followed.add((exchange, routing_key))
        return True

    def arrivals(self, wait: timedelta = timedelta(0)) -> Iterator[DeadLetter]:
        """Yield what has come in; wait so long for the first."""
        patience = wait.total_seconds()
        while self._drained(0 if self._arrived else patience):
            pass
        while self._arrived:
            message = self._arrived.popleft()
            properties = dict(message.properties)
            headers = properties.pop("application_headers", None)
            yield DeadLetter(queue=self._queue, headers=headers or {}, properties=properties)

    def close(self) -> None:
        """Close the connection; the queue goes with it.

        It is unbound first: a queue that vanishes under a publish makes the broker nack it, and a worker
        would publish its letter once more.
        """
        with suppress(*_LOST):
            for exchange, routing_key in self._followed:
                self._channel.queue_unbind(self._queue, exchange, routing_key)
            self._connection.close()
        with suppress(*_LOST):
            self._connection.collect()

    def _drained(self, seconds: float) -> bool:
        try:
            self._connection.drain_events(timeout=seconds)
        except TimeoutError:
            return False
        except _LOST as exc:
            raise self._lost(exc) from exc
        return True

    def _refused(self, exc: Exception) -> AccessRefused:
        return AccessRefused(
            f"what comes back cannot be watched at {self._place}: {exc}. Grant the user configure, write and "
            "read on queues named amq.gen-* and read on the dead-letter exchange, or go without (--blind)."
        )

    def _lost(self, exc: Exception) -> BrokerUnavailable:
        return BrokerUnavailable(f"the connection to {self._place} was lost while watching: {exc}")
