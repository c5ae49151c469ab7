"""What cannot be published: each kind is its own clear error, nothing is sent, and no other is harmed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import amqp
import pytest
from celery import Celery
from kombu.exceptions import EncodeError, OperationalError
from pydantic import BaseModel, ValidationError

import unlost
from tests.support.apps import OTHER, WORK, close, declare, reliable_app, shop
from tests.support.publishing import PATIENCE, drained
from tests.support.raw_amqp import open_channel
from unlost import errors
from unlost.broker.management import Management
from unlost.testing.brokers import Vhost
from unlost.testing.waiting import wait_until
from unlost.topology.objects import Policy

pytestmark = pytest.mark.one_broker

FULL = OTHER
GONE = "shop.gone"


class Order(BaseModel):
    """A payload."""

    number: int


class Pack(unlost.ReliableTask):
    """A task with a payload model."""

    name = "shop.refused_pack"
    queue = WORK
    payload = Order

    def run(self, order: Order) -> None:
        """Never run."""


class Note(unlost.ReliableTask):
    """A task without one."""

    name = "shop.refused_note"
    queue = WORK

    def run(self, value: Any) -> None:
        """Never run."""


def refuses(channel: amqp.Channel, queue: str) -> bool:
    """Whether a queue refuses one more message; its limit is soft, so it takes one or a few more."""
    try:
        channel.basic_publish_confirm(amqp.Message("filler"), "", queue, timeout=10)
    except amqp.exceptions.MessageNacked:
        return True
    return False


@pytest.fixture
def app(vhost: Vhost, tmp_path: Path) -> Iterator[Celery]:
    """Make an app with a queue that is full and one that was deleted behind its back."""
    topology = shop()
    queues = {**topology.queues, GONE: topology.queues[WORK]}
    topology = topology.model_copy(update={"queues": queues})
    declare(vhost, topology)
    with Management(vhost.management_url, vhost.name) as management:
        full = Policy(
            name="full",
            pattern=f"^{FULL}$",
            apply_to="queues",
            # Above the usual policy: of two at the same priority either may win.
            priority=101,
            definition={"max-length": 1, "overflow": "reject-publish"},
        )
        management.put_policy(full)
    with open_channel(vhost.amqp_url) as channel:
        channel.queue_delete(GONE)
        wait_until(lambda: refuses(channel, FULL), PATIENCE, "the queue is full")
    made = reliable_app(vhost, tmp_path, topology, payload_limit=100_000, publish_patience=1)
    made.register_task(Pack())
    made.register_task(Note())
    yield made
    close(made)


#: Task, keyword arguments, options; and the error with the words that it must have.
REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], type[Exception], str]] = {
    "unroutable": (Note.name, {"value": 1}, {"queue": GONE}, errors.Unroutable, "Declare the queue"),
    "refused": (Note.name, {"value": 1}, {"queue": FULL}, errors.Refused, "its queue is full"),
    "too large": (Note.name, {"value": "x" * 100_001}, {}, errors.InvalidMessage, "payload_limit=100000"),
    "not serialisable": (Note.name, {"value": object()}, {}, EncodeError, "shop.refused_note: JSON has no"),
    "wrong payload": (Pack.name, {"number": "many"}, {}, ValidationError, "valid integer"),
    "unknown queue": (Note.name, {"value": 1}, {"queue": "shop.wrok"}, errors.TopologyError, "did you mean"),
}


def values(vhost: Vhost) -> list[Any]:
    """Return the arguments of what is in the work queue."""
    return [next(iter(json.loads(each.body)[1].values())) for each in drained(vhost, WORK)]


@pytest.mark.parametrize("kind", REFUSED)
def test_each_refusal_is_its_own_clear_error_and_nothing_is_sent(
    vhost: Vhost, app: Celery, kind: str
) -> None:
    """The call raises what it is, with the way out; the queue stays empty; the next call is unharmed."""
    name, kwargs, options, error, words = REFUSED[kind]
    with pytest.raises(error, match=words) as caught:
        app.tasks[name].apply_async(kwargs=kwargs, **options)
    assert kind == "wrong payload" or isinstance(
        caught.value, OperationalError | EncodeError | errors.TopologyError
    )
    app.tasks[Note.name].delay(value="next")
    assert values(vhost) == ["next"]


@pytest.mark.parametrize("kind", ["too large", "not serialisable", "wrong payload"])
def test_a_bad_item_of_a_bulk_fails_alone(vhost: Vhost, app: Celery, kind: str) -> None:
    """Among many items, first or later, each bad one has its own error, and the others are there."""
    name, bad, _, error, words = REFUSED[kind]
    (field,) = bad
    items: list[dict[str, Any]] = [{field: n} for n in range(12)]
    items[0] = items[7] = bad
    bulk = app.tasks[name].apply_many(items)
    assert [each.index for each in bulk.failed] == [0, 7]
    for each in bulk.failed:
        assert isinstance(each.error, error)
        assert words in str(each.error)
    assert (bulk.confirmed, bulk.unknown) == (10, [])
    assert values(vhost) == [n for n in range(12) if n not in (0, 7)]


@pytest.mark.parametrize("kind", REFUSED)
def test_a_bad_call_in_a_block_harms_no_other(vhost: Vhost, app: Celery, kind: str) -> None:
    """In a block of ``publishing`` all that is good is confirmed; the bad one raises there or at the end."""
    name, kwargs, options, error, words = REFUSED[kind]
    at_its_end = kind in ("unroutable", "refused")
    confirmed = 0

    def publish() -> None:
        nonlocal confirmed
        with unlost.publishing(app) as block:
            for number in range(20):
                if number == 7 and at_its_end:
                    app.tasks[name].apply_async(kwargs=kwargs, **options)
                elif number == 7:
                    with pytest.raises(error, match=words):
                        app.tasks[name].apply_async(kwargs=kwargs, **options)
                app.tasks[Note.name].delay(value=number)
            block.settle()
            confirmed = block.confirmed

    if at_its_end:
        with pytest.raises(errors.PublishErrors) as caught:
            publish()
        (failed,) = caught.value.failed
        assert isinstance(failed.error, error)
        assert words in str(failed.error)
        assert caught.value.unknown == ()
    else:
        publish()
    assert confirmed == 20
    assert values(vhost) == list(range(20))
