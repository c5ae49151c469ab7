"""Plain py-amqp, so that a broker's behaviour is seen without any of our own publishing code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

import amqp

from unlost.testing.waiting import wait_until


@contextmanager
def open_channel(amqp_url: str) -> Iterator[amqp.Channel]:
    """Open a channel with publisher confirms; connection and channel are closed at the end."""
    parts = urlsplit(amqp_url)
    connection = amqp.Connection(
        host=f"{parts.hostname}:{parts.port or 5672}",
        userid=unquote(parts.username or "guest"),
        password=unquote(parts.password or "guest"),
        virtual_host=unquote(parts.path[1:]) or "/",
        connect_timeout=5,
        read_timeout=30,
        confirm_publish=True,
    )
    connection.connect()
    with connection:
        yield connection.channel()


def publish(channel: amqp.Channel, exchange: str, routing_key: str, body: str = "x") -> bool:
    """Publish with ``mandatory``, wait for the confirm, and tell whether the message found a queue."""
    returned: list[Any] = []
    channel.events["basic_return"].add(lambda *args: returned.append(args))
    message = amqp.Message(body, delivery_mode=2)
    channel.basic_publish_confirm(message, exchange, routing_key, mandatory=True, timeout=10)
    channel.events["basic_return"].clear()
    return not returned


def get(channel: amqp.Channel, queue: str, timeout: timedelta = timedelta(seconds=10)) -> amqp.Message:
    """Take one message from a queue, unacknowledged; wait for it if it is not there yet."""
    message: amqp.Message = wait_until(
        lambda: channel.basic_get(queue),
        timeout,
        f"a message is in {queue!r}",
        poll=timedelta(milliseconds=20),
    )
    return message
