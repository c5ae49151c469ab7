"""Circuits and limits are the same for all workers, in every store."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, update

from tests.support.stores import ALL, Servers, fresh_url
from unlost.core.breaker import Breaker, Circuit, CircuitState
from unlost.core.limits import Limit
from unlost.core.ports import Throttle
from unlost.database.database import Database
from unlost.database.migrations import versions
from unlost.errors import StoreUnavailable
from unlost.throttle.documents import DocumentThrottle
from unlost.throttle.open import open_throttle
from unlost.throttle.schema import PART, circuits, limits, slots
from unlost.throttle.sql import SqlThrottle

BANK = Breaker(name="bank", at_least=2, pause=timedelta(hours=1))
LEASE = timedelta(minutes=1)


@pytest.fixture(params=ALL)
def store(request: pytest.FixtureRequest, store_servers: Servers, tmp_path: Path) -> Iterator[Throttle]:
    """Return an empty store, of each kind in turn."""
    yield from opened(request.param, store_servers, tmp_path)


@pytest.fixture(params=["memory", "redis"])
def documents(request: pytest.FixtureRequest, store_servers: Servers, tmp_path: Path) -> Iterator[Throttle]:
    """Return an empty store of each kind that compares and sets."""
    yield from opened(request.param, store_servers, tmp_path)


def opened(kind: str, servers: Servers, directory: Path) -> Iterator[Throttle]:
    """Open an empty store of a kind, and close it."""
    with ExitStack() as stack:
        made = open_throttle(fresh_url(kind, servers, directory, stack))
        yield made
        if isinstance(made, SqlThrottle):
            made.database.dispose()


def time_passes(store: Throttle, hours: float) -> None:
    """Make every moment in the store earlier."""
    seconds = hours * 3600
    if isinstance(store, DocumentThrottle):
        for key in list(store._keys("")):
            text, _ = store._get(key)
            assert store._swap(key, text, json.dumps(earlier(json.loads(text or ""), seconds)))
        return
    assert isinstance(store, SqlThrottle)
    with store.database.transaction() as connection:
        for column in (circuits.c.until, limits.c.paid_until, slots.c.expires):
            connection.execute(update(column.table).values({column.name: column - seconds}))


def earlier(document: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return a document with every moment in it earlier."""
    return {
        name: earlier(value, seconds)
        if isinstance(value, dict)
        else value - seconds
        if name in ("until", "paid_until", "expires")
        else value
        for name, value in document.items()
    }


def test_a_table_of_the_release_before_is_brought_up_to_date(database_url: str) -> None:
    """It gets the column that is missing, and that release goes on writing without it."""
    database = Database(database_url)
    store = SqlThrottle(database)
    store.create_schema()
    with database.transaction() as connection:
        connection.exec_driver_sql("ALTER TABLE unlost_circuits DROP COLUMN streak")
        old = (versions.c.part == PART) & (versions.c.version == 2)
        connection.execute(delete(versions).where(old))
    store.create_schema()
    theirs = {each.name: 0 for each in circuits.c if each.name not in ("streak", "prober")}
    with store.database.transaction() as connection:
        connection.execute(
            insert(circuits).values({**theirs, "name": "bank", "state": "closed", "reason": ""})
        )
    assert store.circuit("bank") == Circuit()
    assert not store.count(BANK, ok=0, failed=2).flows
    database.dispose()


def test_a_circuit_nobody_has_counted_for_flows(store: Throttle) -> None:
    """And is not listed."""
    assert store.circuit("bank").flows
    assert store.circuits() == {}


def test_the_counts_of_all_workers_add_up_and_open_it(store: Throttle) -> None:
    """One failure each of two workers is enough for at_least=2."""
    assert store.count(BANK, ok=0, failed=1).flows
    opened = store.count(BANK, ok=0, failed=1)
    assert opened.state is CircuitState.OPEN
    assert store.circuit("bank") == opened
    (listed, left) = store.circuits()["bank"]
    assert listed == opened
    assert 3590 < left <= 3600


def test_one_worker_of_many_gets_the_probe(store: Throttle) -> None:
    """Eight ask at the same moment when the pause is over."""
    store.count(BANK, ok=0, failed=2)
    assert not store.probe(BANK, "w0")
    time_passes(store, hours=2)
    won: list[str] = []

    def ask(who: str) -> None:
        if store.probe(BANK, who):
            won.append(who)

    threads = [threading.Thread(target=ask, args=(f"w{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.probed(BANK, "somebody else", ok=True).state is CircuitState.PROBING
    assert store.probed(BANK, won[0], ok=True).flows


def test_an_operator_holds_and_releases_what_nobody_has_counted_for(store: Throttle) -> None:
    """A hold needs no failures, and a release lets a probe through at once."""
    store.hold("bank", lasts=timedelta(hours=1), reason="maintenance")
    assert store.circuit("bank").reason == "maintenance"
    assert not store.probe(BANK, "w")
    store.release("bank")
    assert store.probe(BANK, "w")


def test_many_asking_at_once_get_no_more_than_the_rate(store: Throttle) -> None:
    """A burst of five for eight workers that each want three."""
    limit = Limit(name="sms", rate=5, per=timedelta(hours=1), burst=5)
    got: list[int] = []

    def ask(who: str) -> None:
        got.append(store.permits(limit, who, wanted=3, running=0, lease=LEASE).permits)

    threads = [threading.Thread(target=ask, args=(f"w{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(got) == 5
    refused = store.permits(limit, "w", wanted=1, running=0, lease=LEASE)
    assert refused.permits == 0
    assert 700 < refused.wait <= 720


def test_after_a_quiet_time_one_may_start_at_once(store: Throttle) -> None:
    """Whatever the size of the numbers that the store's clock shows."""
    for rate in (3, 10, 1000):
        limit = Limit(name=f"sms-{rate}", rate=rate)
        assert store.permits(limit, "w", wanted=1, running=0, lease=LEASE).permits == 1


def test_permits_without_a_message_are_given_back(store: Throttle) -> None:
    """They can be had again at once."""
    limit = Limit(name="sms", rate=5, per=timedelta(hours=1), burst=5)
    store.permits(limit, "w1", wanted=5, running=0, lease=LEASE)
    store.refund(limit, 2)
    assert store.permits(limit, "w2", wanted=5, running=0, lease=LEASE).permits == 2


def test_what_other_workers_run_takes_slots_until_they_say_or_fall_silent(store: Throttle) -> None:
    """A worker that is gone is believed for its lease and no longer."""
    limit = Limit(name="printer", concurrent=3)
    assert store.permits(limit, "w1", wanted=9, running=0, lease=LEASE).permits == 3
    assert store.permits(limit, "w2", wanted=9, running=0, lease=LEASE).permits == 0
    store.permits(limit, "w1", wanted=0, running=1, lease=LEASE)
    assert store.permits(limit, "w2", wanted=9, running=0, lease=LEASE).permits == 2
    time_passes(store, hours=1)
    assert store.permits(limit, "w3", wanted=9, running=0, lease=LEASE).permits == 3


def test_what_two_decide_at_once_is_decided_one_after_the_other(
    documents: DocumentThrottle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that comes between makes the other decide anew: no count is lost."""
    swap = documents._swap
    overtaken: list[str] = []

    def overtake(key: str, before: str | None, after: str) -> bool:
        if not overtaken:
            overtaken.append(key)
            documents.count(BANK, ok=0, failed=1)
        return swap(key, before, after)

    monkeypatch.setattr(documents, "_swap", overtake)
    assert documents.count(BANK, ok=0, failed=1).state is CircuitState.OPEN


def test_what_a_later_release_has_written_is_read(documents: DocumentThrottle) -> None:
    """Workers of two releases share a circuit while one takes the other's place."""
    written = documents.hold("bank", lasts=timedelta(hours=1), reason="maintenance")
    text, _ = documents._get("circuit:bank")
    assert documents._swap("circuit:bank", text, json.dumps({**json.loads(text or ""), "later": 1}))
    assert documents.circuit("bank") == written


def test_a_crowd_that_never_lets_one_through_is_a_store_that_does_not_answer(
    documents: DocumentThrottle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks is told, and asks again later."""
    monkeypatch.setattr(documents, "_swap", lambda *_: False)
    with pytest.raises(StoreUnavailable, match="another worker changed it first"):
        documents.hold("bank", lasts=LEASE, reason="maintenance")
