"""Effects happen exactly once while processes crash at every point, and broker and store die."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.crashes import POINTS, POINTS_WITHOUT_TRANSACTION
from tests.support.exactly_once import Crashing, Verdict
from tests.support.stores import require
from tests.support.workers import bench
from unlost.testing.brokers import Broker
from unlost.testing.stores import StoreServer, start_store

pytestmark = [pytest.mark.system, pytest.mark.one_broker]

MANY = 20_000
PATIENCE = timedelta(minutes=8)


@contextmanager
def crashing(
    broker: Broker, kind: str, folder: Path, *, rate: int, **settings: str
) -> Iterator[tuple[Crashing, StoreServer]]:
    """Yield the crashing app on a store of its own, one crash in so many passages of a point."""
    with ExitStack() as stack:
        server = stack.enter_context(start_store(kind, os.environ))
        url = stack.enter_context(server.fresh())
        vhost = stack.enter_context(broker.fresh_vhost())
        given = {
            "UNLOST_STORE": url,
            "UNLOST_LEASE": "4",
            "UNLOST_MAX_CRASHES": "50",
            "UNLOST_MAX_LOST": "100",
            "CRASH_FOLDER": str(folder),
            "CRASH_RATE": str(rate),
            **settings,
        }
        made = stack.enter_context(bench(vhost, folder, **given))
        made.module = "tests.support.crashing"
        yield Crashing(made), server


def at(moments: dict[int, Callable[[], None]]) -> Callable[[int], None]:
    """Return what makes trouble when so many orders are published."""

    def trouble(published: int) -> None:
        if published in moments:
            moments[published]()

    return trouble


def restart(server: Broker | StoreServer) -> Callable[[], None]:
    """Return what kills a server and starts it again on the same data."""

    def strike() -> None:
        server.kill()
        if isinstance(server, StoreServer):
            server.start()
        else:
            server.restart()

    return strike


def assert_once(verdict: Verdict) -> None:
    """Nothing is lost and nothing happened twice."""
    assert verdict.lost == [], verdict
    assert verdict.duplicates == {}, verdict


@pytest.mark.timeout(900)
def test_rows_are_written_once_whatever_dies(
    own_broker: Broker, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Crashes at every point, a kill of the broker, a kill of PostgreSQL, copies: lost 0, duplicates 0."""
    require("postgresql", request.config)
    with crashing(own_broker, "postgresql", tmp_path, rate=30) as (run, server):
        trouble = at({50: restart(own_broker), 100: restart(server)})
        verdict = run.run(120, PATIENCE, trouble)
    assert_once(verdict)
    assert set(verdict.crashes) >= set(POINTS), verdict


@pytest.mark.timeout(900)
@pytest.mark.long
def test_without_the_lease_rows_are_written_twice(
    broker: Broker, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The same run with the lease off must show it, or its verdict would prove nothing."""
    require("postgresql", request.config)
    with crashing(broker, "postgresql", tmp_path, rate=12, UNLOST_DANGEROUSLY_WITHOUT="lease") as (run, _):
        verdict = run.run(50, PATIENCE)
    assert verdict.duplicates, verdict


@pytest.mark.timeout(900)
def test_effects_outside_repeat_only_where_a_crash_explains_it(
    own_broker: Broker, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With Redis nothing is lost; each repeated effect has its recorded crash or loss, and one token."""
    require("redis", request.config)
    with crashing(own_broker, "redis", tmp_path, rate=30) as (run, server):
        verdict = run.run(100, PATIENCE, at({50: restart(server)}))
    assert verdict.lost == [], verdict
    assert verdict.unexplained == [], verdict
    assert verdict.duplicates, "no crash between effect and record: this run shows nothing"
    assert set(verdict.crashes) == set(POINTS_WITHOUT_TRANSACTION), verdict


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["postgresql", "redis"])
def test_twenty_thousand(
    own_broker: Broker, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Many orders; the broker is killed twice, the store three times."""
    require(kind, request.config)
    with crashing(own_broker, kind, tmp_path, rate=200) as (run, server):
        moments = {4000: restart(own_broker), 12_000: restart(own_broker)}
        moments |= {at: restart(server) for at in (2000, 8000, 16_000)}
        verdict = run.run(MANY // 2, timedelta(minutes=50), at(moments))
    print(f"\n{MANY} tasks on {kind}: {verdict}")
    if kind == "redis":
        assert (verdict.lost, verdict.unexplained) == ([], []), verdict
    else:
        assert_once(verdict)
