"""Plain py-amqp, so that a broker's behaviour is seen without any of our own publishing code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

import amqp

from unlost.testing.waiting import wait_until


@contextmanager
def open_channel(amqp_url: str, *, confirm: bool = True) -> Iterator[amqp.Channel]:
    """Open a channel, with py-amqp's publisher confirms or without; it is closed at the end."""
    parts = urlsplit(amqp_url)
    connection = amqp.Connection(
        host=f"{parts.hostname}:{parts.port or 5672}",
        userid=unquote(parts.username or "guest"),
        password=unquote(parts.password or "guest"),
        virtual_host=unquote(parts.path[1:]) or "/",
        connect_timeout=5,
        read_timeout=30,
        confirm_publish=confirm,
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


def publish_all(
    amqp_url: str, exchange: str, routing_key: str, messages: Iterable[amqp.Message], window: int = 200
) -> int:
    """Publish messages with up to ``window`` confirms outstanding; return how many the broker has confirmed.

    Raises:
        AssertionError: It refused one.
    """
    with open_channel(amqp_url, confirm=False) as channel:
        channel.confirm_select()
        confirmed = sent = 0

        def on_ack(tag: int, multiple: bool) -> None:
            nonlocal confirmed
            confirmed = tag if multiple else confirmed + 1

        def on_nack(tag: int, multiple: bool) -> None:
            raise AssertionError(f"message {tag} was refused")

        channel.events["basic_ack"].add(on_ack)
        channel.events["basic_nack"].add(on_nack)
        for message in messages:
            channel.basic_publish(message, exchange, routing_key)
            sent += 1
            while sent - confirmed >= window:
                channel.connection.drain_events(timeout=60)
        while confirmed < sent:
            channel.connection.drain_events(timeout=60)
    return confirmed


def get(channel: amqp.Channel, queue: str, timeout: timedelta = timedelta(seconds=10)) -> amqp.Message:
    """Take one message from a queue, unacknowledged; wait for it if it is not there yet."""
    message: amqp.Message = wait_until(
        lambda: channel.basic_get(queue),
        timeout,
        f"a message is in {queue!r}",
        poll=timedelta(milliseconds=20),
    )
    return message
