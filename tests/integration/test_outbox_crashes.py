"""Processes are killed at every step: what was committed is published, what was not never is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from kombu import Connection

from tests.support.outbox_processes import (
    KEYS,
    application,
    django_application,
    metadata,
    place_order,
    placed,
    relay_until,
    run_to_death,
)
from tests.support.publishing import declare_queue, drained
from tests.support.stores import Servers, fresh_url, require
from tests.support.workers import bench
from unlost.broker.publisher import Publisher
from unlost.database.database import Database
from unlost.errors import StoreUnavailable
from unlost.outbox.relay import Options, Relay, Step, sending
from unlost.outbox.state import Backoff
from unlost.outbox.store import OutboxStore
from unlost.outbox.wakeup import wakeup_for
from unlost.testing.brokers import Vhost
from unlost.testing.stores import start_store
from unlost.testing.waiting import wait_until

pytestmark = pytest.mark.one_broker

SOON = timedelta(seconds=60)
UNLOST = str(Path(sys.executable).parent / "unlost")
QUICK = Options(lease=timedelta(seconds=2), batch=20, backoff=Backoff(longest=timedelta(seconds=1)))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, store_servers: Servers, tmp_path: Path) -> Iterator[str]:
    """Return the URL of an empty database, embedded and on a server."""
    with ExitStack() as stack:
        yield fresh_url(request.param, store_servers, tmp_path, stack)


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """Return a database with outbox and orders."""
    made = prepared(url)
    yield made
    made.dispose()


def prepared(url: str) -> Database:
    """Open a database and make its tables."""
    made = Database(url)
    OutboxStore(made).create_schema()
    with made.transaction() as connection:
        metadata.create_all(connection)
    return made


def relay_all(database: Database, vhost: Vhost) -> None:
    """Relay until nothing is pending; the leases of the dead end meanwhile."""
    store, publisher, stop = OutboxStore(database), Publisher(Connection(vhost.amqp_url)), threading.Event()
    relay = Relay(store, sending(publisher), wakeup_for(database.engine), QUICK)
    thread = threading.Thread(target=relay.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: not store.status().pending, SOON, "all is published", why_not=store.status)
    finally:
        stop.set()
        thread.join()
        publisher.close()


def assert_published(vhost: Vhost, expected: set[int], copies: int = 0) -> None:
    """Assert what is in the queue: each message, at most so many copies, each key in its order."""
    numbers = [int(each.headers["id"][1:]) for each in drained(vhost, "work")]
    assert set(numbers) == expected
    assert len(numbers) - len(expected) <= copies
    first = list(dict.fromkeys(numbers))
    for key in range(KEYS):
        of_key = [number for number in first if number % KEYS == key]
        assert of_key == sorted(of_key)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("application", [application, django_application])
def test_an_application_is_killed_around_its_commit(
    vhost: Vhost, url: str, database: Database, application: Callable[..., None], when: str
) -> None:
    """Killed before the commit nothing of the transaction is published, killed after it all of it is."""
    declare_queue(vhost, "work")
    run_to_death(application, url, list(range(1, 12)), when)
    expected = {1, 2, 4, 5, 7, 8, 10} | ({11} if when == "after" else set())
    assert placed(database) == expected
    relay_all(database, vhost)
    assert_published(vhost, expected)


@pytest.mark.parametrize(
    ("step", "copies"),
    [(Step.CLAIMED, 0), (Step.PUBLISHED, 20), (Step.SETTLED, 0)],
    ids=str,
)
def test_a_relay_is_killed_at_a_step(
    vhost: Vhost, url: str, database: Database, step: Step, copies: int
) -> None:
    """Another relay takes over when the lease ends; only what was published and not marked has copies."""
    declare_queue(vhost, "work")
    for number in range(60):
        place_order(database, number)
    run_to_death(relay_until, url, vhost.amqp_url, step, 2)
    relay_all(database, vhost)
    assert_published(vhost, set(range(60)), copies)


def test_postgresql_is_killed_under_writers_and_relays(vhost: Vhost, request: pytest.FixtureRequest) -> None:
    """After each restart the orders in the database and the published messages are the same."""
    require("postgresql", request.config)
    declare_queue(vhost, "work")
    with start_store("postgresql", os.environ) as server, server.fresh() as url:
        database = prepared(url)
        stop, unsure = threading.Event(), []

        def write() -> None:
            for number in range(100_000):
                if stop.wait(0.002):
                    return
                try:
                    place_order(database, number)
                except StoreUnavailable:
                    unsure.append(number)
                    stop.wait(0.1)

        def relay() -> None:
            publisher = Publisher(Connection(vhost.amqp_url))
            Relay(OutboxStore(database), sending(publisher), wakeup_for(database.engine), QUICK).run(stop)
            publisher.close()

        threads = [threading.Thread(target=each) for each in (write, relay, relay)]
        for each in threads:
            each.start()
        for _ in range(3):
            before = OutboxStore(database).status().delivered
            wait_until(
                lambda: OutboxStore(database).status().delivered > before + 50,  # noqa: B023 - within its turn
                SOON,
                "more is delivered",
            )
            server.kill()
            server.start()
        stop.set()
        for each in threads:
            each.join()
        relay_all(database, vhost)
        assert unsure, "the server was killed while nobody was writing"
        assert_published(vhost, placed(database), copies=10_000)
        database.dispose()


@pytest.mark.parametrize(("when", "successor"), [("before", "x-2"), ("after", "x-1")])
def test_a_worker_is_killed_around_the_commit_of_its_unit_of_work(
    vhost: Vhost, tmp_path: Path, when: str, successor: str
) -> None:
    """What a unit of work publishes is published once, by the run that committed, and by no other."""
    with bench(vhost, tmp_path, UNLOST_LEASE="4") as shop:
        shop.start()
        shop.call(f"m.publishes_in_work.delay('x', {when!r})")
        shop.wait_for(lambda: shop.effects()["x"] == 1, "the effect is there")
        relay = ["relay", "--store", shop.store, "--broker", vhost.amqp_url, "--once", "--json"]

        def relayed() -> bool:
            done = subprocess.run([UNLOST, "outbox", *relay], capture_output=True, text=True, check=True)
            return bool(json.loads(done.stdout)["delivered"])

        wait_until(relayed, SOON, "the successor is relayed")
        shop.wait_for(lambda: shop.effects()[successor] == 1, "the successor's effect is there")
        assert shop.effects() == {"x": 1, successor: 1}
        assert not relayed()
