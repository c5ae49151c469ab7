"""Workers that are stopped again and again under load: nothing is lost or done twice, nobody is charged."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.workers import Bench, bench
from unlost.testing.brokers import Vhost

GRACE = 2.0

#: What an exit may take beyond the grace: two seconds for a body to unwind, the rest for a loaded machine.
REST = 20.0


def warm(shop: Bench, worker: subprocess.Popen[bytes]) -> None:
    """Stop it as a process manager does."""
    worker.terminate()


def warm_group(shop: Bench, worker: subprocess.Popen[bytes]) -> None:
    """Stop it as a process manager does that signals the whole group."""
    os.killpg(worker.pid, signal.SIGTERM)


def soft(shop: Bench, worker: subprocess.Popen[bytes]) -> None:
    """Give it the grace."""
    worker.send_signal(signal.SIGQUIT)


def cold(shop: Bench, worker: subprocess.Popen[bytes]) -> None:
    """Give it the grace, and cut that short."""
    worker.send_signal(signal.SIGQUIT)
    shop.wait_for(lambda: "stopping: " in shop.log(len(shop.workers) - 1), "it stops")
    worker.send_signal(signal.SIGQUIT)


Stop = Callable[[Bench, subprocess.Popen[bytes]], None]
STOPS: tuple[Stop, ...] = (warm, soft, cold, warm_group)


@pytest.mark.parametrize("stops", [4, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
@pytest.mark.one_broker
def test_stops_under_load_lose_and_repeat_nothing(vhost: Vhost, tmp_path: Path, stops: int) -> None:
    """Every kind of stop in turn, in the middle of the work: each effect happens once, within the grace."""
    tasks = 30 * stops
    with bench(vhost, tmp_path, UNLOST_LEASE="4", UNLOST_SHUTDOWN_GRACE=str(GRACE)) as shop:
        shop.call(f"for n in range({tasks}): m.naps.delay(f'n{{n}}', 3 if n % 20 == 0 else 0.1)")
        slowest = max(stop_one(shop, STOPS[number % len(STOPS)]) for number in range(stops))
        assert slowest < GRACE + REST
        shop.start("--concurrency=8")
        shop.wait_for(lambda: shop.states() == {"done": tasks}, "all is done", timedelta(seconds=60 + tasks))
        assert shop.effects() == {f"n{n}": 1 for n in range(tasks)}
        assert shop.letters() == []
        charged = shop.rows("select count(*) as n from unlost_messages where crashes > 0 or lost > 0")
        assert charged[0].n == 0
        print(f"{stops} stops, {tasks} tasks: none lost, none repeated; slowest exit {slowest:.1f} s")


def stop_one(shop: Bench, stop: Stop) -> float:
    """Start a worker, stop it in the middle of its work, and return the seconds that its exit took."""
    before = sum(shop.runs().values()) if shop.workers else 0
    worker = shop.start("--concurrency=2", "--prefetch-multiplier=4")
    shop.wait_for(lambda: sum(shop.runs().values()) >= before + 3, "it is at work")
    since = time.monotonic()
    stop(shop, worker)
    assert worker.wait(60) == 0
    return time.monotonic() - since
