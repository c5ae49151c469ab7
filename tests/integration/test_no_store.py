"""Real workers of an app without a store: nothing is lost, and nothing is remembered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from tests.support.misbehaving_topology import TOPOLOGY
from tests.support.workers import Bench, bench
from unlost.broker.management import Management
from unlost.testing.brokers import Vhost
from unlost.topology.objects import OperatorPolicy

pytestmark = pytest.mark.one_broker

#: Less than the half minute for which a process of billiard waits until its last word is heard.
STOP = timedelta(seconds=20)


@pytest.fixture
def shop(vhost: Vhost, tmp_path: Path) -> Iterator[Bench]:
    """Yield a bench of the app without a store, on a queue whose deliveries the broker counts."""
    traces = tmp_path / "traces"
    traces.touch()
    topology = {**TOPOLOGY, "queues": {"t.work": {"without_store": True}}}
    with bench(vhost, tmp_path, topology, "tests.support.nostore", TEST_TRACES=str(traces)) as made:
        yield made


def runs(shop: Bench) -> Counter[str]:
    """Return how often each body ran."""
    return Counter((shop.folder / "traces").read_text().split())


def test_what_returns_is_done_and_what_dies_runs_again(shop: Bench) -> None:
    """A task that returns runs once; one whose process is killed comes back at once and runs again."""
    shop.start()
    shop.call("m.dies_once.delay('d'); m.works.delay('w')")
    shop.wait_for(lambda: runs(shop) == {"d": 2, "w": 1}, "both have run")
    assert shop.letters() == []


def test_the_retry_budget_travels_in_the_headers(shop: Bench) -> None:
    """A deadline of 2.5 s over retries a second apart grants two or three retries, then a letter."""
    shop.start()
    shop.call("m.fails.delay('f')")
    shop.wait_for(shop.letters, "the letter is there")
    [(headers, _)] = shop.letters()
    assert headers["x-unlost-death-exception"] == "not today"
    assert headers["x-unlost-attempt"] == runs(shop)["f"]
    assert 2 <= runs(shop)["f"] <= 4


def test_poison_is_dead_lettered_by_the_broker(shop: Bench) -> None:
    """A message that kills every process ends in the dead-letter queue at the broker's delivery limit."""
    with Management(shop.vhost.management_url, shop.vhost.name) as management:
        management.put(
            OperatorPolicy(
                name="two", pattern="^t.work$", apply_to="queues", definition={"delivery-limit": 2}
            )
        )
    shop.start()
    shop.call("m.dies.delay('x'); m.works.delay('w')")
    shop.wait_for(shop.letters, "the letter is there")
    assert runs(shop) == {"x": 3, "w": 1}


def test_what_a_process_has_not_read_when_it_dies_is_done_by_another(shop: Bench) -> None:
    """It lies in the pipe of the dead: it has not begun, and is charged to nobody."""
    worker = shop.start("--concurrency=1")
    [child] = psutil.Process(worker.pid).children()
    child.suspend()
    shop.call("m.works.delay('w')")
    shop.wait_for(lambda: "t.works" in shop.log() and "received" in shop.log(), "it was delivered")
    child.kill()
    shop.wait_for(lambda: runs(shop) == {"w": 1}, "it has run")
    assert "its process is gone" not in shop.log()
    with shop.channel() as channel:
        worker.terminate()
        assert worker.wait(STOP.total_seconds()) == 0
        assert channel.queue_declare("t.work", passive=True).message_count == 0


def test_a_unit_of_work_is_refused_by_name(shop: Bench) -> None:
    """unit_of_work() ends the task as a letter that names what is missing."""
    shop.start()
    shop.call("m.has_a_unit_of_work.delay('u')")
    shop.wait_for(shop.letters, "the letter is there")
    [(headers, _)] = shop.letters()
    assert "t.has_a_unit_of_work: unit_of_work() needs a store" in headers["x-unlost-death-exception"]


def test_what_a_process_has_when_its_worker_stops_runs_there_and_nowhere_else(shop: Bench) -> None:
    """A warm stop under load gives back what no process has, ends at once, and nothing runs a second time."""
    labels = [f"w{number}" for number in range(600)]
    shop.call(f"for label in {labels}: m.works.delay(label)")
    for stop in range(1, 6):
        worker = shop.start("--prefetch-multiplier=4")
        shop.wait_for(lambda stop=stop: len(runs(shop)) >= 80 * stop, "it is at work")
        worker.terminate()
        assert worker.wait(STOP.total_seconds()) == 0
    shop.start()
    shop.wait_for(lambda: set(runs(shop)) == set(labels), "all have run")
    assert runs(shop) == dict.fromkeys(labels, 1)
