"""Messages and publishers for tests of publishing, and what of it is in a queue."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import amqp
from kombu import Connection

from tests.support.raw_amqp import get, open_channel
from unlost.broker.management import Management
from unlost.broker.publisher import Publisher
from unlost.core.message import Outgoing
from unlost.testing.brokers import Vhost
from unlost.testing.waiting import wait_until
from unlost.topology.objects import Queue

QUEUE = "work"
PATIENCE = timedelta(seconds=30)
BRIEFLY = timedelta(seconds=1)

_LAST = "the last message"


def message(queue: str = QUEUE, *, exchange: str = "", body: str = "x", **properties: Any) -> Outgoing:
    """Make a message with a message id of its own; ``headers`` and AMQP properties by keyword."""
    headers = properties.pop("headers", {})
    properties = {"message_id": f"{uuid.uuid4().hex}.0.1", "delivery_mode": 2, **properties}
    return Outgoing(exchange=exchange, routing_key=queue, body=body, headers=headers, properties=properties)


@contextmanager
def publisher(url: str, **options: Any) -> Iterator[Publisher]:
    """Make a publisher and close its connections at the end."""
    made = Publisher(Connection(url), **options)
    try:
        yield made
    finally:
        made.close()


def declare_queue(vhost: Vhost, name: str = QUEUE, **arguments: Any) -> None:
    """Declare a quorum queue, with arguments such as ``max_length``, and wait until it has a leader."""
    extra = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
    with Management(vhost.management_url, vhost.name) as management:
        management.put_queue(Queue(name=name, arguments={"x-queue-type": "quorum", **extra}))
        wait_for_leader(management, name)


def wait_for_leader(management: Management, name: str = QUEUE) -> None:
    """Wait until a queue can be used, after its declaration or a restart of its node."""

    def is_led() -> bool:
        status = management.queue(name)
        return status is not None and status.leader is not None and status.state == "running"

    wait_until(is_led, PATIENCE, f"queue {name!r} has a leader")


def drained(vhost: Vhost, queue: str = QUEUE) -> list[amqp.Message]:
    """Take everything out of a queue, in order; a last message of our own marks the end.

    A count, or an empty answer, would not do: a queue that has just recovered reports none at first.
    """
    taken: list[amqp.Message] = []
    with open_channel(vhost.amqp_url) as channel:
        # Since RabbitMQ 4.3 a quorum queue delivers by priority, and a message without one counts as 4.
        channel.basic_publish_confirm(amqp.Message(_LAST, delivery_mode=2, priority=0), "", queue, timeout=10)
        while (found := get(channel, queue)).body != _LAST:
            taken.append(found)
            channel.basic_ack(found.delivery_tag)
        channel.basic_ack(found.delivery_tag)
    return taken


def depth(vhost: Vhost, queue: str = QUEUE) -> int:
    """Return how many messages are ready in a queue of a broker that nobody has restarted."""
    with open_channel(vhost.amqp_url) as channel:
        return int(channel.queue_declare(queue, passive=True).message_count)


def ids(messages: list[amqp.Message]) -> list[str]:
    """Return the message ids."""
    return [str(each.properties["message_id"]) for each in messages]


def elapsed(since: float) -> float:
    """Return seconds since a moment of the monotonic clock."""
    return time.monotonic() - since


def with_password(url: str, password: str) -> str:
    """Return the URL with another password."""
    scheme, _, rest = url.partition("://")
    userinfo, _, place = rest.rpartition("@")
    return f"{scheme}://{userinfo.partition(':')[0]}:{password}@{place}"
