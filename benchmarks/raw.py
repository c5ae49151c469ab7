"""Plain py-amqp: what the ways to publish are compared with, and what empties a queue between rounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import amqp


@contextmanager
def raw_channel(url: str) -> Iterator[Any]:
    """Open a channel of plain py-amqp."""
    parts = urlsplit(url)
    connection = amqp.Connection(
        host=f"{parts.hostname}:{parts.port or 5672}",
        userid=unquote(parts.username or "guest"),
        password=unquote(parts.password or "guest"),
        virtual_host=unquote(parts.path[1:]) or "/",
    )
    connection.connect()
    with connection:
        yield connection.channel()


def empty(url: str, queue: str) -> int:
    """Take everything out of a queue, so that each round finds it as the first did; return how many."""
    with raw_channel(url) as channel:
        return int(channel.queue_purge(queue))
