"""Poison among innocents: exactly the poison is dead-lettered, everyone else is done, once."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.figures import tell
from tests.support.workers import Bench, bench
from unlost.testing.brokers import Broker, Vhost

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

#: Four processes with 52 deliveries between them.
PREFORK = ("--concurrency=4", "--prefetch-multiplier=13")


@pytest.fixture
def shop(vhost: Vhost, tmp_path: Path) -> Iterator[Bench]:
    """The misbehaving app on a fresh vhost, with a short lease."""
    with bench(vhost, tmp_path, UNLOST_LEASE="4") as made:
        yield made


def publish(shop: Bench, innocents: int, poison: dict[str, str]) -> None:
    """Publish innocents with poison spread among them.

    Args:
        shop: Where.
        innocents: How many.
        poison: How each poisonous message ends its process, by its label.
    """
    shop.call(
        f"poison = list({poison!r}.items())\n"
        f"at = {{round((n + 1) * {innocents} / (len(poison) + 1)): each for n, each in enumerate(poison)}}\n"
        f"for number in range({innocents}):\n"
        "    if number in at:\n"
        "        m.before_commit.delay(*at[number], 10_000)\n"
        "    m.effect.delay(f'innocent-{number}')"
    )


def judge(shop: Bench, innocents: int, poison: dict[str, str], patience: timedelta) -> None:
    """Wait for the end of all, and check that letters and effects are exactly those they should be."""
    shop.wait_for(
        lambda: (
            shop.states() == {"done": innocents, "dead": len(poison)} and len(shop.letters()) >= len(poison)
        ),
        "all have ended",
        patience,
    )
    letters = [headers for headers, _ in shop.letters()]
    assert len(letters) == len(poison)
    assert {headers["task"] for headers in letters} == {"t.before_commit"}
    assert {headers["x-unlost-death-reason"] for headers in letters} == {"poison"}
    assert shop.effects() == {f"innocent-{number}": 1 for number in range(innocents)}


def kill_children(shop: Bench, innocents: int, patience: timedelta) -> None:
    """Run poison that ends its own process, in each way, among innocents."""
    poison = {"killed": "kill", "exited": "_exit", "segv": "segv", "sys-exit": "exit", "memory": "memory"}
    worker = shop.start(*PREFORK)
    publish(shop, innocents, poison)
    judge(shop, innocents, poison, patience)
    assert {headers["x-unlost-crashes"] for headers, _ in shop.letters()} == {3}
    assert {label: shop.runs()[label] for label in poison} == dict.fromkeys(poison, 3)
    assert worker.poll() is None


@pytest.mark.one_broker
def test_poison_of_every_kind_is_dead_lettered_and_nobody_else(shop: Bench) -> None:
    """Each kind of crash costs three processes and then is a letter; 150 innocents are done once."""
    kill_children(shop, 150, timedelta(minutes=2))


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_poison_among_a_thousand_innocents(broker: Broker, shop: Bench) -> None:
    """The same among a thousand."""
    kill_children(shop, 1000, timedelta(minutes=10))
    tell("poison", broker, innocents=1000, poison=5, prefetch=52, dead_lettered=5, effects=1000, twice=0)


@contextmanager
def kept_alive(shop: Bench, *arguments: str) -> Iterator[list[int]]:
    """Start a worker, and another whenever it has died; yields how often that was, in a list."""
    deaths = [0]
    over = threading.Event()

    def supervise() -> None:
        worker: subprocess.Popen[bytes] = shop.start(*arguments, wait=False)
        while not over.wait(0.1):
            if worker.poll() is not None:
                deaths[0] += 1
                worker = shop.start(*arguments, wait=False)

    thread = threading.Thread(target=supervise)
    thread.start()
    try:
        yield deaths
    finally:
        over.set()
        thread.join()


@pytest.mark.one_broker
@pytest.mark.parametrize(("innocents", "most"), [(100, 4)])
def test_poison_that_kills_its_host_takes_no_neighbour_along(
    vhost: Vhost, tmp_path: Path, innocents: int, most: int
) -> None:
    """A message that kills the whole worker ends as poison; those that ran or waited beside it are done."""
    with bench(vhost, tmp_path, UNLOST_LEASE="4", UNLOST_MAX_LOST=str(most)) as shop:
        publish(shop, innocents, {"host": "kill-parent"})
        with kept_alive(shop, *PREFORK) as deaths:
            judge(shop, innocents, {"host": "kill-parent"}, timedelta(minutes=3))
        assert shop.runs()["host"] == most
        assert deaths[0] == most
