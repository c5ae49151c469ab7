"""Dead letters for tests: made as workers make them, put into a queue, and read with plain py-amqp."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kombu import Connection

from tests.support.apps import WORK
from unlost.broker.publisher import Publisher
from unlost.core import headers as h
from unlost.core.headers import Failure
from unlost.core.ids import Generation, MessageId, amqp_message_id
from unlost.core.message import Outgoing
from unlost.core.outcome import Outcome
from unlost.deadletter.letter import DeadLetter
from unlost.topology import naming

LETTERS = naming.dead_letter_queue_of(WORK)
DLX = naming.dead_letter_exchange_of("shop")
TASK = "shop.charge"
FAILED_AT = 1_780_000_000_000

TRACEBACK = """Traceback (most recent call last):
  File "/srv/shop/tasks.py", line 40, in run
    charge(order)
  File "/srv/shop/bank.py", line 12, in charge
    raise Declined(order)
shop.bank.Declined: order {order} declined
"""


def a_letter(
    ident: str | None = None,
    *,
    order: int = 1,
    task: str = TASK,
    redrives: int = 0,
    failure: Mapping[str, Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    queue: str = WORK,
    **headers: Any,
) -> Outgoing:
    """Make the letter of a task, as a worker publishes it."""
    message = MessageId(task, ident or uuid.uuid4().hex)
    generation = Generation(redrives, 1)
    why = {
        "reason": "permanent",
        "exception_type": "shop.bank.Declined",
        "exception": f"order {order} declined",
        "traceback": TRACEBACK.format(order=order),
        "worker": "host:1",
        "failed_at_ms": FAILED_AT,
        **(failure or {}),
    }
    base = {
        "task": task,
        "id": message.id,
        "lang": "py",
        "retries": 0,
        h.VERSION: 1,
        h.QUEUE: queue,
        h.FIRST_PUBLISHED: FAILED_AT - 60_000,
        h.CORRELATION_ID: "c-1",
        **headers,
    }
    return Outgoing(
        exchange=DLX,
        routing_key=queue,
        body=json.dumps([[], {"order": order, **(kwargs or {})}, {}]),
        headers=h.letter(base, generation, Failure(**why)),
        properties={
            "message_id": amqp_message_id(message, generation),
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "delivery_mode": 2,
        },
    )


def as_letter(outgoing: Outgoing) -> DeadLetter:
    """Return the letter as it is read from its queue."""
    body = outgoing.body
    return DeadLetter(
        queue=naming.dead_letter_queue_of(outgoing.routing_key),
        exchange=outgoing.exchange,
        routing_key=outgoing.routing_key,
        body=body if isinstance(body, bytes) else body.encode(),
        headers=outgoing.headers,
        properties=outgoing.properties,
    )


def put(amqp_url: str, letters: Iterable[Outgoing]) -> int:
    """Publish letters, confirmed, and return how many."""
    publisher = Publisher(Connection(amqp_url))
    try:
        count = 0
        for each in publisher.publish_many(letters, window=500):
            if each.outcome is not Outcome.OK:
                raise AssertionError(each.error)
            count += 1
        return count
    finally:
        publisher.close()


def numbered(count: int, **options: Any) -> Iterator[Outgoing]:
    """Make letters of orders 0, 1, 2, ... with the ids ``m0``, ``m1``, ..."""
    for number in range(count):
        yield a_letter(f"m{number}", order=number, **options)


class KnowsNothing:
    """A journal that knows of nothing."""

    def knows(self, *_: Any) -> bool:
        """Whether it does."""
        return False
