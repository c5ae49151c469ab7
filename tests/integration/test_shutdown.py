"""A worker that is stopped: who goes back, who gets its time, who is charged, and how long it takes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.workers import Bench, bench
from unlost.testing.brokers import Broker, Vhost

pytestmark = pytest.mark.one_broker

GRACE = 3
#: From the end of the grace to the end of the process: a child is signalled, watched and reaped.
REST = timedelta(seconds=15)

#: Two slots, and six deliveries that wait in the worker behind them.
WAITING = 6
GREEDY = ("--concurrency=2", "--prefetch-multiplier=4")


@pytest.fixture
def shop(vhost: Vhost, tmp_path: Path) -> Iterator[Bench]:
    """The misbehaving app on a fresh vhost, with a short grace."""
    with bench(vhost, tmp_path, UNLOST_LEASE="4", UNLOST_SHUTDOWN_GRACE=str(GRACE)) as made:
        yield made


def fill(shop: Bench) -> None:
    """Start a worker in a process group of its own whose two slots are busy and that holds six more."""
    shop.start(*GREEDY)
    shop.call(
        "for n in range(2): m.waits.delay(f'runs{n}')\n"
        f"for n in range({WAITING}): m.effect.delay(f'waits{{n}}')"
    )
    shop.wait_for(lambda: shop.runs() == {"runs0": 1, "runs1": 1}, "both slots are busy")
    shop.wait_for(lambda: ready(shop) == 0, "the worker has prefetched the rest")


def ready(shop: Bench) -> int:
    """Return how many deliveries of the work queue no worker has."""
    with shop.channel() as channel:
        return int(channel.queue_declare("t.work", passive=True).message_count)


def charged(shop: Bench) -> list[int]:
    """Return the deliveries that the broker has counted against each message of the work queue."""
    with shop.channel() as channel:
        counts = []
        while (message := channel.basic_get("t.work")) is not None:
            headers = message.properties.get("application_headers") or {}
            counts.append(int(headers.get("x-delivery-count", 0)))
        return counts


def charges_returns(shop: Bench) -> bool:
    """Whether this broker counts what is given back uncharged from 4.3 on."""
    with shop.channel() as channel:
        version = str(channel.connection.server_properties["version"])
    return tuple(int(part) for part in version.split(".")[:2]) < (4, 3)


def crashes(shop: Bench) -> list[tuple[int, int]]:
    """Return crashes and takeovers of each message."""
    return [(row.crashes, row.lost) for row in shop.rows("select crashes, lost from unlost_messages")]


@pytest.mark.parametrize("to", ["the worker", "its process group"])
def test_a_warm_stop_gives_back_what_waits_and_lets_what_runs_finish(shop: Bench, to: str) -> None:
    """What never started is with the broker at once and uncharged; what runs ends done, in its own time."""
    fill(shop)
    worker = shop.workers[0]
    if to == "the worker":
        worker.terminate()
    else:
        os.killpg(worker.pid, signal.SIGTERM)
    shop.wait_for(lambda: ready(shop) == WAITING, "what waited has gone back")
    assert worker.poll() is None
    assert shop.runs() == {"runs0": 1, "runs1": 1}
    shop.call("m.note('release')")
    assert worker.wait(REST.total_seconds()) == 0
    assert shop.states() == {"done": 2}
    counts = charged(shop)
    assert len(counts) == WAITING
    if not charges_returns(shop):
        assert set(counts) == {0}


def test_a_soft_stop_gives_its_grace_and_takes_no_longer(shop: Bench) -> None:
    """What waits goes back before the grace, what outlasts it is given back afterwards, and is no crash."""
    fill(shop)
    worker = shop.workers[0]
    worker.send_signal(signal.SIGQUIT)
    shop.wait_for(lambda: ready(shop) == WAITING, "what waited has gone back", timedelta(seconds=GRACE))
    assert worker.wait(GRACE + REST.total_seconds()) == 0
    counts = charged(shop)
    assert len(counts) == WAITING + 2
    if not charges_returns(shop):
        assert set(counts) == {0}
    assert crashes(shop) == [(0, 0)] * 2
    shop.call("m.note('release')")
    shop.start()
    shop.wait_for(lambda: shop.states() == {"done": WAITING + 2}, "another worker does it all")
    assert shop.effects() == {f"waits{n}": 1 for n in range(WAITING)}
    assert crashes(shop) == [(0, 0)] * (WAITING + 2)


def test_a_warm_stop_that_takes_too_long_can_be_made_soft(shop: Bench) -> None:
    """SIGQUIT after SIGTERM: what still runs has its grace and is given back, and is no crash."""
    fill(shop)
    worker = shop.workers[0]
    worker.terminate()
    shop.wait_for(lambda: ready(shop) == WAITING, "what waited has gone back")
    worker.send_signal(signal.SIGQUIT)
    assert worker.wait(GRACE + REST.total_seconds()) == 0
    shop.wait_for(lambda: ready(shop) == WAITING + 2, "all has gone back")
    assert crashes(shop) == [(0, 0)] * 2
    assert [row.holder for row in shop.rows("select holder from unlost_messages")] == [None] * 2


@pytest.mark.parametrize("remapped", [False, True], ids=["SIGQUIT", "SIGTERM remapped"])
def test_a_soft_stop_ends_when_its_tasks_do(shop: Bench, remapped: bool) -> None:
    """What ends within the grace is done and acked, and nobody waits for the rest of it."""
    remap = {"REMAP_SIGTERM": "SIGQUIT"} if remapped else {}
    shop.settings = {**shop.settings, **remap, "UNLOST_SHUTDOWN_GRACE": "600"}
    fill(shop)
    worker = shop.workers[0]
    worker.send_signal(signal.SIGTERM if remapped else signal.SIGQUIT)
    shop.wait_for(lambda: "stopping: " in shop.log(), "it is a soft stop")
    shop.wait_for(lambda: ready(shop) == WAITING, "what waited has gone back")
    shop.call("m.note('release')")
    assert worker.wait(REST.total_seconds()) == 0
    assert shop.states() == {"done": 2}
    assert len(charged(shop)) == WAITING


def test_a_body_that_ignores_its_end_is_killed_and_has_no_effect(shop: Bench) -> None:
    """A soft stop is over although a body ignores SIGTERM; its transaction was never committed."""
    shop.start("--concurrency=1")
    shop.call("m.outlives_its_end.delay('stubborn')")
    shop.wait_for(lambda: shop.runs() == {"stubborn": 1}, "it runs")
    worker = shop.workers[0]
    worker.send_signal(signal.SIGQUIT)
    assert worker.wait(GRACE + REST.total_seconds()) == 0
    assert shop.effects() == {}
    assert crashes(shop) == [(0, 0)]
    assert len(charged(shop)) == 1


def test_a_soft_stop_does_not_wait_for_threads(shop: Bench) -> None:
    """A thread cannot be ended: its lease is, and the process exits without it."""
    shop.settings = {**shop.settings, "TEST_WITHOUT_TASKS": "t.too_slow t.soft"}
    shop.start("--pool=threads", "--concurrency=1")
    shop.call("m.waits_then_commits.delay('half')")
    shop.wait_for(lambda: shop.runs() == {"half": 1}, "it runs")
    worker = shop.workers[0]
    worker.send_signal(signal.SIGQUIT)
    assert worker.wait(GRACE + REST.total_seconds()) == 0
    assert shop.effects() == {}
    assert crashes(shop) == [(0, 0)]
    assert [row.holder for row in shop.rows("select holder from unlost_messages")] == [None]
    shop.wait_for(lambda: ready(shop) == 1, "it has gone back")
    if not charges_returns(shop):
        assert charged(shop) == [0]


def test_a_soft_stop_does_not_wait_for_a_broker_that_is_away(own_broker: Broker, tmp_path: Path) -> None:
    """A worker that has no connection ends within its grace all the same, and what it ran is no crash."""
    with (
        own_broker.fresh_vhost() as vhost,
        bench(vhost, tmp_path, UNLOST_SHUTDOWN_GRACE=str(GRACE)) as shop,
    ):
        worker = shop.start(*GREEDY)
        shop.call("for n in range(2): m.waits.delay(f'runs{n}')")
        shop.wait_for(lambda: shop.runs() == {"runs0": 1, "runs1": 1}, "both slots are busy")
        own_broker.kill()
        try:
            shop.wait_for(lambda: "Cannot connect to" in shop.log(), "it has no connection")
            worker.send_signal(signal.SIGQUIT)
            assert worker.wait(GRACE + REST.total_seconds()) == 0
        finally:
            own_broker.restart()
        assert crashes(shop) == [(0, 0)] * 2
        shop.wait_for(lambda: ready(shop) == 2, "both have gone back")


def test_a_soft_stop_goes_on_when_the_broker_goes_away(own_broker: Broker, tmp_path: Path) -> None:
    """The grace that had begun ends when it would have."""
    with (
        own_broker.fresh_vhost() as vhost,
        bench(vhost, tmp_path, UNLOST_SHUTDOWN_GRACE="6") as shop,
    ):
        worker = shop.start(*GREEDY)
        shop.call("for n in range(2): m.waits.delay(f'runs{n}')")
        shop.wait_for(lambda: shop.runs() == {"runs0": 1, "runs1": 1}, "both slots are busy")
        worker.send_signal(signal.SIGQUIT)
        shop.wait_for(lambda: "stopping: running tasks" in shop.log(), "the grace has begun")
        own_broker.kill()
        try:
            assert worker.wait(6 + REST.total_seconds()) == 0
        finally:
            own_broker.restart()
        assert crashes(shop) == [(0, 0)] * 2
