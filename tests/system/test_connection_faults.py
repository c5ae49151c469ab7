"""The way to the broker fails under load: workers consume again by themselves, and nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.faults import FAULTS, Fault, Scene, alarm, black_hole, cut, restart
from tests.support.figures import quantile, tell
from tests.support.load import Load
from tests.support.workers import SOON, Bench, bench
from unlost.testing.brokers import Broker
from unlost.testing.proxy import HoleProxy
from unlost.testing.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

#: Workers that consume again within this time of the fault's end have recovered.
RECOVERED = timedelta(seconds=10)
#: Bodies that can be under way at the end of a fault: two workers with two processes each.
RUNNING = 4


@contextmanager
def scene(broker: Broker, folder: Path) -> Iterator[tuple[Scene, Bench]]:
    """Two workers that go through a proxy, on a vhost of their own; clients go straight to the broker."""
    with (
        broker.fresh_vhost() as vhost,
        bench(vhost, folder, UNLOST_LEASE="4", UNLOST_CONNECT_PATIENCE="60") as shop,
        HoleProxy(vhost.amqp_url) as proxy,
    ):
        settings = {**shop.settings}
        shop.settings = {**settings, "CELERY_BROKER_URL": proxy.url}
        try:
            for _ in range(2):
                shop.start()
            shop.settings = settings
            yield Scene(broker, vhost, proxy), shop
        finally:
            # Before the proxy, whose threads end with the connections.
            shop.stop()


def strike(
    given: Scene, shop: Bench, faults: list[Fault], rate: float = 20
) -> tuple[dict[str, int], list[float]]:
    """Let faults happen under load; return the verdict, and how long after each it was consumed again."""
    took = []
    with Load(shop, rate=rate, seconds=0.05, long_seconds=0.5, every_long=20) as load:
        for fault in faults:
            wait_until_consuming(shop, SOON)
            fault(given)
            began = time.monotonic()
            wait_until_consuming(shop, 6 * RECOVERED)
            took.append(time.monotonic() - began)
        load.stop()
        load.wait_until_settled(timedelta(minutes=5))
        shop.wait_for(lambda: set(shop.states()) == {"done"}, "no message is under way", timedelta(minutes=1))
    assert shop.letters() == []
    return load.verdict(), took


def wait_until_consuming(shop: Bench, patience: timedelta) -> None:
    """Wait until more bodies have ended than were under way: at least one was delivered since."""
    before = sum(shop.effects().values())
    wait_until(
        lambda: sum(shop.effects().values()) > before + RUNNING,
        patience,
        "workers consume",
        why_not=lambda: "".join(shop.log(number)[-3000:] for number in range(len(shop.workers))),
    )


@pytest.mark.one_broker
@pytest.mark.long
def test_a_cut_and_a_black_hole_are_survived(broker: Broker, tmp_path: Path) -> None:
    """All connections are closed, and then lost without a word: consumed again, nothing lost."""
    with scene(broker, tmp_path) as (given, shop):
        verdict, took = strike(given, shop, [cut, black_hole])
    assert (verdict["lost"], verdict["twice"]) == (0, 0), verdict
    assert max(took) < 3 * RECOVERED.total_seconds()


@pytest.mark.one_broker
def test_a_restart_and_an_alarm_are_survived(own_broker: Broker, tmp_path: Path) -> None:
    """The broker is short of memory, and then killed and started again: consumed again, nothing lost."""
    with scene(own_broker, tmp_path) as (given, shop):
        verdict, took = strike(given, shop, [alarm, restart])
    assert (verdict["lost"], verdict["twice"]) == (0, 0), verdict
    assert max(took) < 3 * RECOVERED.total_seconds()


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_survived_twenty_times(own_broker: Broker, fault: Fault, tmp_path: Path) -> None:
    """Twenty times under load: consuming again within ten seconds of its end, nothing lost, nothing twice."""
    with scene(own_broker, tmp_path) as (given, shop):
        # In ten minutes of black holes more would pile up than two workers do in time.
        verdict, took = strike(given, shop, [fault] * 20, rate=4 if fault is black_hole else 20)
    tell(
        f"connection faults: {fault.__name__}",
        own_broker,
        times=len(took),
        **verdict,
        recovery_p50_s=round(quantile(took, 0.5), 2),
        recovery_p99_s=round(quantile(took, 0.99), 2),
    )
    assert (verdict["lost"], verdict["twice"]) == (0, 0), verdict
    assert quantile(took, 0.99) < RECOVERED.total_seconds()
