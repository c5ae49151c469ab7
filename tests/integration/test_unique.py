"""Unique tasks on a real broker: how many messages are published for the same work, on every store."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, Task
from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import schedule
from pydantic import BaseModel

import unlost
from tests.support.apps import OTHER, WORK, close, declare, shop
from tests.support.publishing import depth
from tests.support.stores import ALL, Servers, fresh_url, time_machine
from unlost.core.ids import Generation, MessageId
from unlost.core.settlement import Delivery, Limits, Run
from unlost.core.uniqueness import unique_id
from unlost.errors import ConfigurationError, PublishError, StoreUnavailable, UniqueConflict
from unlost.idempotency.holder import make_holder
from unlost.tasks.runtime import Runtime, runtime_of
from unlost.tasks.sink import captured
from unlost.testing.brokers import Vhost

pytestmark = pytest.mark.one_broker

LEASE = timedelta(seconds=15)


class Order(BaseModel):
    """What a task is about."""

    number: int
    note: str = ""


class Shop:
    """An app whose tasks nobody runs, and the queue that their messages go to."""

    def __init__(self, vhost: Vhost, app: Celery) -> None:
        self._vhost = vhost
        self.app = app
        self.runtime: Runtime = runtime_of(app)

    def task(self, name: str = "shop.pack", **options: Any) -> Any:
        """Return a task of these attributes, unique until it is finished unless they say otherwise."""
        given = {"unique": "until_finished", "queue": WORK, **options}

        @self.app.task(base=unlost.ReliableTask, name=name, shared=False, **given)
        def pack(number: int, note: str = "") -> None:
            pass

        return self.app.tasks[name]

    @property
    def depth(self) -> int:
        """Return how many messages wait."""
        return depth(self._vhost, WORK)

    def states(self, *published: Any) -> list[str | None]:
        """Return where each message stands in the ledger."""
        rows = [self.runtime.ledger.read(MessageId("shop.pack", each.id)) for each in published]
        return [row.state if row else None for row in rows]

    def begin(self, published: Any, task: str = "shop.pack") -> Callable[[], None]:
        """Begin a message as a worker does; returns how to end it."""
        message = MessageId(task, published.id)
        delivery = Delivery(message=message, generation=Generation(0, 1), holder=make_holder())
        admission = self.runtime.ledger.acquire(delivery, lease=LEASE, limits=Limits())
        assert isinstance(admission, Run), admission
        return lambda: self.runtime.ledger.complete(message, admission.row, None)


@pytest.fixture(params=ALL)
def store_url(request: pytest.FixtureRequest, store_servers: Servers, tmp_path: Path) -> Iterator[str]:
    """Return the URL of an empty store of each kind."""
    with ExitStack() as stack:
        yield fresh_url(request.param, store_servers, tmp_path, stack)


@pytest.fixture
def on(vhost: Vhost) -> Iterator[Callable[[str], Shop]]:
    """Return what makes the shop on a store."""
    declare(vhost, shop())
    with ExitStack() as stack:

        def make(url: str, **settings: object) -> Shop:
            app = Celery("shop", broker=vhost.amqp_url, set_as_current=False)
            unlost.install(app, topology=shop(), store=url, settings=settings)
            stack.callback(close, app)
            return Shop(vhost, app)

        yield make


@pytest.fixture
def here(on: Callable[[str], Shop]) -> Shop:
    """The shop with a store in memory: what does not depend on the store."""
    return on("memory://")


def test_a_second_message_is_skipped_until_the_first_has_finished(
    on: Callable[[str], Shop], store_url: str
) -> None:
    """While it waits or runs a second publish returns its result; once it is done there is a new one."""
    made = on(store_url)
    task = made.task()

    first = task.delay(5)
    assert task.delay(5).id == first.id
    other = task.delay(6)
    finish = made.begin(first)
    assert task.delay(5).id == first.id
    assert made.depth == 2

    finish()
    third = task.delay(5)
    assert len({first.id, other.id, third.id}) == made.depth == 3
    assert task.delay(5).id == third.id


def test_until_started_ends_when_a_worker_has_begun(here: Shop) -> None:
    """What runs stands in nobody's way."""
    task = here.task(unique="until_started")

    first = task.delay(5)
    assert task.delay(5).id == first.id
    here.begin(first)
    assert task.delay(5).id != first.id
    assert here.depth == 2


def test_a_time_ends_by_itself(here: Shop) -> None:
    """Within the time one is published, done or not; after it the next."""
    task = here.task(unique=timedelta(seconds=60))
    pass_time = time_machine(here.runtime.ledger)

    first = task.delay(5)
    here.begin(first)()
    pass_time(59)
    assert task.delay(5).id == first.id
    pass_time(1.5)
    assert task.delay(5).id != first.id
    assert here.depth == 2


def test_a_message_that_vanished_blocks_for_its_lease_only(here: Shop) -> None:
    """Somebody purges the queue: after ``unique_lease``, counted from when it was due, work goes on."""
    task = here.task(unique_lease=timedelta(seconds=30))
    pass_time = time_machine(here.runtime.ledger)

    first = task.apply_async((5,), countdown=10)
    pass_time(39)
    assert task.delay(5).id == first.id
    pass_time(1.5)
    assert task.delay(5).id != first.id


def test_replace_publishes_the_new_one_and_cancels_the_old(here: Shop) -> None:
    """The old message is cancelled for all its copies; if it is done already it stays done."""
    task = here.task(on_conflict="replace")
    first, second = task.delay(5), task.delay(5)
    finish = here.begin(second)
    third = task.delay(5)

    assert here.depth == 3
    assert here.states(first, second, third) == ["cancelled", "cancelled", None]
    with pytest.raises(unlost.errors.LeaseLost):
        finish()
    here.begin(third)()
    task.delay(5)
    assert here.states(third) == ["done"]


def test_raise_names_the_message_in_the_way(here: Shop) -> None:
    """The error says which, and nothing is sent."""
    task = here.task(on_conflict="raise")
    first = task.delay(5)

    with pytest.raises(UniqueConflict, match=first.id) as caught:
        task.delay(5)

    assert caught.value.occupant == MessageId("shop.pack", first.id)
    assert here.depth == 1


def test_many_publishers_publish_one(on: Callable[[str], Shop], store_url: str) -> None:
    """Threads that publish the same at once agree on one message, and each gets its result."""
    made = on(store_url)
    task = made.task()
    start = threading.Barrier(8)

    def publish(_: int) -> str:
        start.wait(30)
        return str(task.delay(5).id)

    with ThreadPoolExecutor(8) as threads:
        ids = set(threads.map(publish, range(8)))

    assert len(ids) == made.depth == 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_publisher_that_dies_leaves_nothing_behind(
    on: Callable[..., Shop], tmp_path: Path, how: signal.Signals
) -> None:
    """Killed before its message is confirmed it is in nobody's way; stopped, it is until its lease ends."""
    made = on(
        f"sqlite:///{tmp_path}/store.sqlite", publish_patience=1.0, connect_patience=0.5, confirm_timeout=0.25
    )
    task = made.task()
    pid = os.fork()
    if pid == 0:
        # This process only: struck where it would publish.
        Task.apply_async = lambda *_args, **_options: os.kill(os.getpid(), how)
        task.delay(5)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    try:
        assert made.runtime.ledger.read(unique_id("shop.pack", {"number": 5, "note": ""})) is not None
        began = time.monotonic()
        conflicts = 0
        while not made.depth:
            with suppress(UniqueConflict):
                task.delay(5)
            conflicts += not made.depth
        assert (conflicts > 0) == (how is signal.SIGSTOP)
        assert time.monotonic() - began < 20
        assert made.depth == 1
    finally:
        if how is signal.SIGSTOP:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_a_publish_that_fails_frees_the_work(here: Shop) -> None:
    """Nobody may rely on a message that is not there: the next publish is not skipped."""
    task = here.task()
    with pytest.raises(PublishError):
        task.apply_async((5,), exchange="nowhere", routing_key="x")

    task.delay(5)
    assert here.depth == 1


def test_a_store_that_is_down_publishes_nothing_unless_the_task_is_open(on: Callable[[str], Shop]) -> None:
    """Closed, nobody can say whether there is one, and the caller is told; open, it is published."""
    made = on("memory://")

    def down(*_args: Any, **_options: Any) -> None:
        raise StoreUnavailable("down")

    made.runtime.ledger.acquire = down  # type: ignore[assignment, method-assign]
    with pytest.raises(StoreUnavailable):
        made.task().delay(5)
    assert made.depth == 0

    made.task("shop.open", on_store_down="open").delay(5)
    assert made.depth == 1


def test_what_others_wait_for_is_never_left_out_in_silence(here: Shop) -> None:
    """Skipping a message would drop its link or the rest of its chain: that is an error of the caller."""
    task, plain = here.task(), here.task("shop.plain", unique=None)
    task.delay(5)

    with pytest.raises(UniqueConflict, match="its link"):
        task.apply_async((5,), link=plain.si(1))
    with pytest.raises(UniqueConflict, match="its chain"):
        (task.si(5) | plain.si(1))()
    assert here.depth == 1


def test_a_window_of_confirms_does_not_hold_a_unique_task(here: Shop) -> None:
    """Inside ``publishing`` its confirm is awaited at once: others rely on it."""
    task = here.task()
    with unlost.publishing(here.app):
        first = task.delay(5)
        assert here.depth == 1
        assert task.delay(5).id == first.id


def test_what_cannot_be_decided_at_publish_time_is_refused(here: Shop) -> None:
    """A transaction may still be rolled back, and a bulk is confirmed later."""
    task = here.task()
    with pytest.raises(ConfigurationError, match="after the transaction"), captured(here.runtime.sink):
        task.delay(5)
    with pytest.raises(ConfigurationError, match="loop over delay"):
        task.apply_many([(5,)])


def test_the_work_is_told_by_what_the_task_says(here: Shop) -> None:
    """By ``unique_by``, else the key, else all arguments; a key space is shared on purpose."""
    by_all = here.task("shop.all")
    by_field = here.task("shop.field", payload=Order, unique_by="number")
    by_key = here.task("shop.key", payload=Order, key=("number",), key_space="orders")
    shares = here.task("shop.shares", unique_by=lambda given: [given["number"]], key_space="orders")

    assert by_all.delay(1).id != by_all.delay(1, note="x").id
    assert by_field.delay(number=1).id == by_field.delay(number=1, note="x").id
    first = by_key.delay(number=1)
    assert by_key.delay(number=1, note="x").id == first.id == shares.delay(1).id
    assert here.depth == 4


def test_beat_does_not_publish_what_is_still_under_way(here: Shop) -> None:
    """A periodic task whose last run has not finished is skipped, by however many beats."""
    task = here.task()
    entry = ScheduleEntry(name="pack", task=task.name, args=(5,), schedule=schedule(1), app=here.app)
    beats = [Scheduler(here.app, lazy=True) for _ in range(2)]

    for beat in beats * 2:
        last = beat.apply_async(entry)
    assert here.depth == 1

    here.begin(last)()
    for beat in beats:
        beat.apply_async(entry)
    assert here.depth == 2


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"unique": "until_done"}, "unique='until_done'"),
        ({"unique": timedelta(0)}, "unique="),
        ({"unique": timedelta(days=15)}, "the store's retention, 14 days"),
        ({"on_conflict": "drop"}, "on_conflict='drop'"),
        ({"unique_lease": timedelta(days=15)}, "unique_lease="),
        ({"payload": Order, "unique_by": "amount"}, "unique_by='amount'"),
    ],
)
def test_what_makes_no_sense_is_refused_where_it_is_written(
    here: Shop, given: dict[str, Any], named: str
) -> None:
    """The task's attributes are checked when it is bound; the error names one and what it may be."""
    with pytest.raises(ConfigurationError, match=named):
        here.task("shop.wrong", **given)


def test_the_same_message_may_be_published_again(here: Shop) -> None:
    """A second publish under the same id is a copy, which the ledger absorbs, and no conflict."""
    task = here.task(on_conflict="raise")
    task.apply_async((5,), task_id="one")
    task.apply_async((5,), task_id="one")
    assert here.depth == 2


def test_an_id_that_postgresql_cannot_store_is_refused(here: Shop) -> None:
    """NUL in a task id is named before anything is sent."""
    with pytest.raises(PublishError, match="NUL"):
        here.task(unique=None, queue=OTHER).apply_async((5,), task_id="a\0b")
