"""Workers are stopped in every way while they work: nothing is lost or repeated, they exit in time."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import cycle, islice
from pathlib import Path

import pytest

from tests.support.figures import quantile, tell
from tests.support.load import Load, signal_group
from tests.support.workers import SOON, Bench, bench
from unlost.testing.brokers import Broker, Vhost
from unlost.testing.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

Process = subprocess.Popen[bytes]

#: What Celery's own shutdown may take on a loaded machine, beyond the time that bodies are given.
MARGIN = timedelta(seconds=30)
#: How long the longest bodies of the load run; a warm stop waits for them.
LONGEST = timedelta(seconds=2)
#: Messages a second: four processes do 14 if none is stopped, and what they do not is left for the end.
RATE = 10
#: For how long a soft stop lets bodies go on.
SOFT = timedelta(seconds=10)
#: After this a container's runtime kills what has not stopped.
CONTAINER_GRACE = timedelta(seconds=1)


def warm(worker: Process) -> None:
    """SIGTERM: what runs is finished."""
    worker.send_signal(signal.SIGTERM)


def warm_twice(worker: Process) -> None:
    """SIGTERM again while it stops: the same."""
    warm(worker)
    with suppress(subprocess.TimeoutExpired):
        worker.wait(0.2)
    warm(worker)


def group(worker: Process) -> None:
    """SIGTERM to the whole process group, children too."""
    signal_group(worker, signal.SIGTERM)


def soft(worker: Process) -> None:
    """SIGQUIT: what runs gets its grace, and is then stopped."""
    worker.send_signal(signal.SIGQUIT)


def cold(worker: Process) -> None:
    """SIGQUIT twice: what runs is stopped at once."""
    soft(worker)
    with suppress(subprocess.TimeoutExpired):
        worker.wait(0.2)
    soft(worker)


def container(worker: Process) -> None:
    """SIGTERM, and after the runtime's grace SIGKILL to all."""
    warm(worker)
    with suppress(subprocess.TimeoutExpired):
        worker.wait(CONTAINER_GRACE.total_seconds())
    signal_group(worker, signal.SIGKILL)


@dataclass(frozen=True)
class Way:
    """A way to stop a worker, and within what time it must have exited."""

    stop: Callable[[Process], None]
    grace: timedelta

    def __str__(self) -> str:
        return self.stop.__name__


WAYS = [
    Way(warm, LONGEST),
    Way(soft, SOFT),
    Way(cold, timedelta(0)),
    Way(group, LONGEST),
    Way(warm_twice, LONGEST),
    Way(container, CONTAINER_GRACE),
]


@pytest.fixture
def shop(vhost: Vhost, tmp_path: Path) -> Iterator[Bench]:
    """The misbehaving app on a fresh vhost, with a short lease."""
    with bench(vhost, tmp_path, UNLOST_LEASE="4") as made:
        yield made


def stop_again_and_again(shop: Bench, ways: Sequence[Way]) -> tuple[dict[str, int], dict[str, list[float]]]:
    """Stop one of two workers in each way, under load; return the verdict, and how long the exits took."""
    took: dict[str, list[float]] = defaultdict(list)
    with Load(shop, rate=RATE, seconds=0.1, long_seconds=LONGEST.total_seconds(), every_long=10) as load:
        running = [start(shop), start(shop)]
        for number, way in enumerate(ways):
            worker, log = running[number % 2]
            wait_until(lambda log=log: is_busy(log), SOON, f"the worker works before it is stopped: {way}")  # type: ignore[misc]
            began = time.monotonic()
            way.stop(worker)
            worker.wait((way.grace + MARGIN).total_seconds())
            took[str(way)].append(time.monotonic() - began)
            running[number % 2] = start(shop)
        load.stop()
        load.wait_until_settled(timedelta(minutes=10))
        shop.wait_for(lambda: set(shop.states()) == {"done"}, "no message is under way")
        assert shop.letters() == []
        return load.verdict(), took


def start(shop: Bench) -> tuple[Process, Path]:
    """Start a worker with several deliveries prefetched; return it and its log."""
    worker = shop.start("--prefetch-multiplier=4")
    return worker, shop.folder / f"worker-{len(shop.workers) - 1}.log"


def is_busy(log: Path) -> bool:
    """Whether a worker has received more than its two processes can run at once."""
    return log.read_text().count(" received") > 6


@pytest.mark.one_broker
@pytest.mark.long
def test_stopped_workers_lose_nothing_and_repeat_nothing(shop: Bench) -> None:
    """Nine stops under load, in every way at least once: each confirmed task has its effect, once."""
    verdict, _ = stop_again_and_again(shop, [*islice(cycle(WAYS), 9)])
    assert (verdict["lost"], verdict["twice"]) == (0, 0), verdict
    assert verdict["confirmed"] > 50


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_hundred_stops_lose_nothing_and_repeat_nothing(broker: Broker, shop: Bench) -> None:
    """The same a hundred times."""
    verdict, took = stop_again_and_again(shop, [*islice(cycle(WAYS), 100)])
    tell(
        "stops",
        broker,
        **verdict,
        **{
            f"exit_{way}_s": {
                "count": len(all_),
                "p50": round(quantile(all_, 0.5), 2),
                "max": round(max(all_), 2),
            }
            for way, all_ in took.items()
        },
    )
    assert (verdict["lost"], verdict["twice"]) == (0, 0), verdict
