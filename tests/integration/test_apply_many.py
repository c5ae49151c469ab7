"""Bulk publishing of tasks on a live broker: blocks, ``apply_many``, sending again, limits of size."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, group, signals
from kombu.exceptions import OperationalError
from pydantic import BaseModel

import unlost
from tests.support.apps import LEVELS, OTHER, WORK, close, declare, reliable_app, shop
from tests.support.publishing import BRIEFLY, PATIENCE, QUEUE, declare_queue, drained, ids, message, publisher
from tests.support.raw_amqp import get, open_channel
from unlost import errors
from unlost.broker.errors import ConfirmUnknown
from unlost.core import headers as h
from unlost.core.ids import Generation, MessageId
from unlost.core.outcome import Outcome
from unlost.core.settlement import Row, Run, State
from unlost.errors import ConfigurationError, PublishErrors, TopologyError
from unlost.tasks.attempt import Attempt
from unlost.tasks.bulk import Bulk
from unlost.tasks.runtime import runtime_of
from unlost.testing.brokers import Vhost
from unlost.testing.proxy import MuteProxy
from unlost.testing.waiting import wait_until
from unlost.topology import naming

pytestmark = pytest.mark.one_broker


class Order(BaseModel):
    """A payload."""

    number: int


class Pack(unlost.ReliableTask):
    """A task that is only ever published here."""

    name = "shop.pack_many"
    queue = WORK
    payload = Order

    def run(self, order: Order) -> None:
        """Never run."""


class Count(unlost.ReliableTask):
    """A task without a payload model."""

    name = "shop.count_many"
    queue = WORK

    def run(self, *values: int, by: int = 1) -> None:
        """Never run."""


@pytest.fixture
def app(vhost: Vhost, tmp_path: Path) -> Iterator[Celery]:
    """Make an installed app on a vhost that has its topology."""
    declare(vhost, shop())
    made = reliable_app(vhost, tmp_path, shop(), payload_limit=100_000, payload_warning=10_000)
    yield made
    close(made)


@pytest.fixture
def pack(app: Celery) -> Any:
    """Register the task with a payload."""
    return app.register_task(Pack())


@pytest.fixture
def count(app: Celery) -> Any:
    """Register the task without one."""
    return app.register_task(Count())


def calls(vhost: Vhost, queue: str = WORK) -> list[Any]:
    """Return positional and keyword arguments of what is in a queue, in order."""
    return [json.loads(found.body)[:2] for found in drained(vhost, queue)]


def test_each_item_becomes_one_task(vhost: Vhost, count: Any) -> None:
    """Tuples, lists and mappings all become calls, in order; the result counts them."""
    bulk = count.apply_many([(1, 2), [3], {"by": 4}, ()])
    assert (bulk.confirmed, bulk.problems, bulk.stopped) == (4, [], False)
    bulk.raise_for_problems()
    assert calls(vhost) == [[[1, 2], {}], [[3], {}], [[], {"by": 4}], [[], {}]]


def test_items_that_make_no_task_fail_and_harm_no_other(vhost: Vhost, pack: Any) -> None:
    """Invalid payloads, too large ones and wrong types are named by place and reason; the others are sent."""
    items: list[Any] = [{"number": n} for n in range(10)]
    items[2] = {"number": "many"}
    items[5] = 7
    items[6] = Order(number=6)
    items[8] = (1, 2, 3)
    bulk = pack.apply_many(items)
    assert [(each.index, each.outcome, type(each.error).__name__) for each in bulk.problems] == [
        (2, Outcome.FAILED, "ValidationError"),
        (5, Outcome.FAILED, "TypeError"),
        (8, Outcome.FAILED, "TypeError"),
    ]
    assert bulk.confirmed == 7
    with pytest.raises(
        PublishErrors, match=r"7 confirmed, 3 failed, 0 unknown.*item 2: ValidationError"
    ) as caught:
        bulk.raise_for_problems()
    assert isinstance(caught.value, OperationalError)
    assert [each.index for each in caught.value.failed] == [2, 5, 8]
    assert [call[1]["number"] for call in calls(vhost)] == [0, 1, 3, 4, 6, 7, 9]


def test_options_are_honoured_for_all(vhost: Vhost, count: Any) -> None:
    """Queue, priority, own headers, a link and a countdown are those of ``apply_async``."""
    assert count.apply_many([(1,), (2,)], queue=OTHER, priority=6, headers={"tenant": "acme"}).confirmed == 2
    for found in drained(vhost, OTHER):
        assert (found.properties["priority"], found.headers["tenant"]) == (6, "acme")
    assert count.apply_many([(1,), (2,), (3,)], link=count.si(9)).confirmed == 3
    links = [
        json.loads(found.body)[2]["callbacks"][0]["options"]["task_id"] for found in drained(vhost, WORK)
    ]
    assert len(set(links)) == 3
    assert count.apply_many([(1,), (2,)], countdown=3600).confirmed == 2
    with open_channel(vhost.amqp_url) as channel:
        assert get(channel, naming.delay_level("shop", LEVELS - 1)).headers[h.DUE]
        assert get(channel, naming.delay_level("shop", LEVELS - 1)).headers[h.DUE]


def test_the_input_is_taken_as_confirms_come(count: Any) -> None:
    """Never more than a window is taken ahead, whatever the length; progress is told every thousand."""
    seen: list[int] = []
    taken = 0

    def items() -> Iterator[tuple[int]]:
        nonlocal taken
        for n in range(2500):
            taken += 1
            yield (n,)

    def progress(bulk: Bulk) -> None:
        seen.append(bulk.confirmed)
        assert taken - bulk.confirmed <= 100

    assert count.apply_many(items(), window=100, progress=progress).confirmed == 2500
    assert seen == [1000, 2000, 2500]


def test_too_many_problems_stop_it(vhost: Vhost, count: Any) -> None:
    """After ``max_problems`` the rest of the input is not taken, and the result says so."""
    source = iter(range(1000))
    bulk = count.apply_many((n for n in source), max_problems=5)
    assert (bulk.confirmed, len(bulk.problems), bulk.stopped) == (0, 5, True)
    assert "gave up" in bulk.summary()
    assert next(source) == 5


def test_what_cannot_be_shared_is_refused(vhost: Vhost, count: Any) -> None:
    """One task id for many tasks, or an unknown queue, is a ConfigurationError; nothing is sent."""
    with pytest.raises(ConfigurationError, match="no task_id"):
        count.apply_many([(1,)], task_id="x")
    with pytest.raises(TopologyError, match=r"did you mean 'shop\.work'"):
        count.apply_many([(1,)], queue="shop.wrok")
    assert drained(vhost, WORK) == []


def test_unroutable_tasks_are_named(vhost: Vhost, count: Any) -> None:
    """When the queue is gone each task fails as Unroutable, with its id."""
    with open_channel(vhost.amqp_url) as channel:
        channel.queue_delete(OTHER)
    bulk = count.apply_many([(n,) for n in range(20)], queue=OTHER)
    assert [type(each.error).__name__ for each in bulk.failed] == ["Unroutable"] * 20
    assert all(each.task_id and each.task_id in str(each.error) for each in bulk.failed)


def test_a_block_confirms_all_at_its_end(vhost: Vhost, app: Celery, pack: Any) -> None:
    """In a block ``delay``, remote names, chains and groups are all sent, and confirmed when it ends."""
    with unlost.publishing(app, window=50) as block:
        for n in range(200):
            pack.delay(number=n)
        app.send_task("warehouse.pack", args=[1], queue=OTHER)
        chain(pack.si(number=200), pack.si(number=0))()
        group(pack.si(number=201), pack.si(number=202))()
    assert (block.confirmed, block.problems) == (204, ())
    assert [call[1]["number"] for call in calls(vhost)] == list(range(203))
    assert len(drained(vhost, OTHER)) == 1


def test_a_block_names_what_it_could_not_publish(vhost: Vhost, app: Celery, count: Any) -> None:
    """At its end a block raises PublishErrors for the unroutable ones only; the others are there."""
    with open_channel(vhost.amqp_url) as channel:
        channel.queue_delete(OTHER)
    sent: list[str] = []

    def publish() -> None:
        with unlost.publishing(app):
            for n in range(30):
                sent.append(count.apply_async((n,), queue=OTHER if n % 10 == 1 else WORK).id)

    with pytest.raises(PublishErrors, match="3 messages failed, 0 are unknown") as caught:
        publish()
    assert isinstance(caught.value, OperationalError)
    assert [each.outgoing.headers["id"] for each in caught.value.failed] == sent[1::10]
    assert len(drained(vhost, WORK)) == 27


def test_an_error_of_the_block_comes_through_and_what_was_published_is_there(
    vhost: Vhost, app: Celery, count: Any
) -> None:
    """An exception inside a block is raised as it is, after all that was published is confirmed."""

    def publish() -> None:
        with unlost.publishing(app):
            count.delay(1)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        publish()
    assert len(drained(vhost, WORK)) == 1


def test_only_the_thread_that_opened_a_block_publishes_through_it(
    vhost: Vhost, app: Celery, count: Any
) -> None:
    """A thread that inherits the context publishes for itself, confirmed when its call returns."""
    with unlost.publishing(app) as block, ThreadPoolExecutor(1) as thread:
        count.delay(1)
        thread.submit(copy_context().run, count.delay, 2).result(30)
        assert [2] in [json.loads(found.body)[0] for found in drained(vhost, WORK)]
    assert block.confirmed == 1
    count.delay(3)
    assert block.confirmed == 1


def test_what_follows_a_task_that_is_done_bypasses_the_block(vhost: Vhost, app: Celery, count: Any) -> None:
    """Once an attempt is completed its publishes are confirmed one by one, also inside an open block."""
    runtime = runtime_of(app)
    row = Row(state=State.DONE, generation=Generation(0, 1), token=1)
    attempt = Attempt(
        message=MessageId("shop.task", "m"),
        ledger=runtime.ledger,
        admission=Run(row),
        row=row,
        queue=WORK,
        headers={},
        properties={},
        body=b"",
        completed=True,
    )
    token = runtime.attempt.set(attempt)
    try:
        with unlost.publishing(app) as block:
            count.delay(1)
            assert len(drained(vhost, WORK)) == 1
        assert block.confirmed == 0
    finally:
        runtime.attempt.reset(token)


def test_a_listener_of_celerys_signals_hears_of_bulk_tasks(vhost: Vhost, count: Any) -> None:
    """Receivers of before_task_publish can still change headers of every task of a bulk."""

    def stamp(headers: dict[str, Any], **_: Any) -> None:
        headers["tenant"] = "acme"

    signals.before_task_publish.connect(stamp)
    try:
        assert count.apply_many([(1,), (2,), (3,)]).confirmed == 3
    finally:
        signals.before_task_publish.disconnect(stamp)
    assert [found.headers["tenant"] for found in drained(vhost, WORK)] == ["acme"] * 3


@pytest.mark.parametrize("bulk", [False, True])
def test_a_payload_over_the_limit_is_refused_unsent(vhost: Vhost, count: Any, bulk: bool) -> None:
    """Above ``payload_limit`` a task is refused before anything is sent; the error says how large it is."""
    large = "x" * 100_001
    if bulk:
        result = count.apply_many([("small",), ("small",), (large,), ("small",)])
        assert result.confirmed == 3
        (problem,) = result.problems
        assert problem.index == 2
        error: Exception = problem.error
    else:
        with pytest.raises(errors.Refused) as caught:
            count.delay(large)
        error = caught.value
    assert isinstance(error, errors.Refused | OperationalError)
    assert "payload_limit=100000" in str(error)
    assert "xxxx" not in str(error)
    assert len(drained(vhost, WORK)) == (3 if bulk else 0)


def test_a_large_payload_is_warned_of(vhost: Vhost, count: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Above ``payload_warning`` a warning names the task and its size, and shows nothing of the content."""
    with caplog.at_level(logging.WARNING):
        count.delay("y" * 10_001)
        count.delay("y" * 1_000)
    (record,) = [each for each in caplog.records if "payload_warning" in each.getMessage()]
    assert "shop.count_many" in record.getMessage()
    assert "yyyy" not in record.getMessage()
    assert len(drained(vhost, WORK)) == 2


def test_an_unknown_message_is_sent_again_under_its_own_id(vhost: Vhost) -> None:
    """``ConfirmUnknown.resend()`` returns when the same message, same id, is confirmed."""
    declare_queue(vhost)
    with MuteProxy(vhost.amqp_url) as proxy, publisher(proxy.url, confirm_timeout=BRIEFLY) as publishing:
        publishing.publish(message())
        proxy.mute()
        doubtful = message()
        with pytest.raises(ConfirmUnknown) as caught:
            publishing.publish(doubtful, patience=BRIEFLY / 100)
        caught.value.resend()
    assert Counter(ids(drained(vhost)))[doubtful.message_id] in (1, 2)


def test_an_unknown_message_stays_unknown_when_sending_it_again_fails(vhost: Vhost) -> None:
    """If the second attempt is refused, nothing is proven about the first: ConfirmUnknown again."""
    declare_queue(vhost)
    with MuteProxy(vhost.amqp_url) as proxy, publisher(proxy.url, confirm_timeout=BRIEFLY) as publishing:
        publishing.publish(message())
        proxy.mute()
        with pytest.raises(ConfirmUnknown) as caught:
            publishing.publish(message(), patience=BRIEFLY / 100)
        with open_channel(vhost.amqp_url) as channel:
            wait_until(lambda: channel.queue_declare(QUEUE, passive=True)[1] == 2, PATIENCE, "it is stored")
            channel.queue_delete(QUEUE)
        with pytest.raises(ConfirmUnknown, match="still unknown") as again:
            caught.value.resend()
    assert isinstance(again.value.__cause__, errors.Unroutable)
    assert again.value.outgoing == caught.value.outgoing


def test_threads_may_open_blocks_at_the_same_time(vhost: Vhost, app: Celery, count: Any) -> None:
    """Each thread has its own block; no message goes through another's."""
    barrier = threading.Barrier(3)

    def publish() -> int:
        with unlost.publishing(app) as block:
            barrier.wait(10)
            for n in range(50):
                count.delay(n)
        return block.confirmed

    with ThreadPoolExecutor(3) as threads:
        assert [each.result(60) for each in [threads.submit(publish) for _ in range(3)]] == [50] * 3
    assert Counter(call[0][0] for call in calls(vhost)) == dict.fromkeys(range(50), 3)
