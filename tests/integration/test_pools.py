"""Every pool that Celery has: what holds in all of them, and what is refused where it would not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from tests.support.gates import gated
from tests.support.stores import Servers, fresh_url
from tests.support.workers import Bench, bench
from unlost.testing.brokers import Vhost

pytestmark = pytest.mark.one_broker

#: What each pool ignores; without these tasks it may start.
REFUSED = {"prefork": "", "threads": "t.soft t.too_slow", "solo": "t.soft t.too_slow", "gevent": "t.soft"}


@pytest.fixture
def shop(vhost: Vhost, tmp_path: Path) -> Iterator[Bench]:
    """The misbehaving app on a fresh vhost, with a lease that is short enough to see it renewed."""
    with bench(vhost, tmp_path, UNLOST_LEASE="2") as made:
        yield made


def start(shop: Bench, pool: str) -> None:
    """Start a worker with a pool, without the tasks that it would be refused for."""
    shop.settings = {**shop.settings, "TEST_WITHOUT_TASKS": REFUSED[pool]}
    shop.start(f"--pool={pool}")


@pytest.mark.parametrize(
    ("pool", "limit"),
    [
        ("threads", "time_limit=1"),
        ("solo", "time_limit=1"),
        ("gevent", "soft_time_limit=1"),
    ],
)
def test_a_limit_that_the_pool_ignores_is_refused(shop: Bench, pool: str, limit: str) -> None:
    """Status 2 at the start, with task, limit, pool and the way out."""
    worker = shop.start(f"--pool={pool}", wait=False)
    assert worker.wait(30) == 2
    assert f"{limit} would be ignored by the pool {pool!r}" in shop.log()
    assert "--pool=prefork" in shop.log()
    assert "Traceback" not in shop.log()


def expires(shop: Bench) -> float:
    """Return until when the one lease lasts."""
    [row] = shop.rows("select expires from unlost_messages where state = 'leased'")
    return float(row.expires)


@pytest.mark.parametrize("pool", REFUSED)
def test_a_lease_is_renewed_and_a_dead_worker_taken_over(shop: Bench, pool: str) -> None:
    """A long body keeps its lease; when its worker is killed another runs it; the effect happens once."""
    start(shop, pool)
    shop.call("m.waits_then_commits.delay('long')")
    shop.wait_for(lambda: shop.runs()["long"] == 1, "it runs")
    granted = expires(shop)
    shop.wait_for(lambda: expires(shop) > granted + 2, "its lease was renewed for longer than it lasts")
    shop.workers[0].kill()
    shop.workers[0].wait()
    start(shop, pool)
    shop.wait_for(lambda: shop.runs()["long"] == 2, "another worker has taken over")
    shop.call("m.note('release')")
    shop.wait_for(lambda: shop.states() == {"done": 1}, "it is done")
    assert shop.effects() == {"long": 1}
    [row] = shop.rows("select crashes, lost from unlost_messages")
    assert (row.crashes, row.lost) == (0, 1)


def test_jobs_of_every_size_reach_a_process(shop: Bench) -> None:
    """Those that a pipe takes at once, those that it takes in parts, and those just between."""
    sizes = [*range(0, 3000, 40), 40_000, 70_000, 300_000]
    start(shop, "prefork")
    shop.call(f"for size in {sizes}: m.effect.delay('x' * size)")
    shop.wait_for(lambda: shop.states() == {"done": len(sizes)}, "all are done")
    assert shop.effects() == {"x" * size: 1 for size in sizes}


def test_greenlets_hand_on_their_connections_to_redis(
    vhost: Vhost, tmp_path: Path, store_servers: Servers
) -> None:
    """Each task is a greenlet of its own: many more of them than a process may have connections."""
    with ExitStack() as stack:
        url = fresh_url("redis", store_servers, tmp_path, stack)
        bank = stack.enter_context(gated(vhost, tmp_path, UNLOST_STORE=url))
        bank.start("--pool=gevent", "--concurrency=20")
        bank.call("for n in range(200): m.pay.delay(n)")
        bank.wait_for(lambda: bank.paid() == set(range(200)), "all are paid")
        assert bank.failures() == 0
        with redis.Redis.from_url(url) as client:
            ours = [each for each in client.client_list() if each["db"] == url.rpartition("/")[2]]
        # One for each greenlet of a moment, the gates' and the leases', and the one that asks.
        assert len(ours) <= 20 + 3


@pytest.mark.parametrize("option", ["--max-tasks-per-child=2", "--max-memory-per-child=1"])
def test_processes_that_are_replaced_all_the_time_lose_and_charge_nothing(shop: Bench, option: str) -> None:
    """A job that went to a process on its way out is done by the next; nobody is to blame for the end."""
    labels = [str(number) for number in range(40)]
    shop.start(option)
    shop.call(f"for label in {labels}: m.effect.delay(label)")
    shop.wait_for(lambda: shop.states() == {"done": len(labels)}, "all are done")
    assert shop.effects() == dict.fromkeys(labels, 1)
    assert shop.runs() == dict.fromkeys(labels, 1)
    assert set(shop.rows("select crashes, lost from unlost_messages")) == {(0, 0)}
    assert (
        len({line.split("ForkPoolWorker-")[1].split("]")[0] for line in succeeded(shop)}) > len(labels) // 4
    )


def succeeded(shop: Bench) -> list[str]:
    """Return the lines of the log in which a process says that a task succeeded."""
    return [line for line in shop.log().splitlines() if "ForkPoolWorker-" in line and "succeeded" in line]


@pytest.mark.parametrize("pool", REFUSED)
def test_what_would_end_a_pool_ends_the_attempt(shop: Bench, pool: str) -> None:
    """MemoryError and SystemExit are counted crashes of the message; worker and neighbours go on."""
    start(shop, pool)
    shop.call("for what in ('memory', 'exit'): m.before_commit.delay(what, what); m.effect.delay('after')")
    shop.wait_for(lambda: shop.effects() == {"memory": 1, "exit": 1, "after": 2}, "all have their effects")
    assert shop.workers[0].poll() is None
    assert sorted(row.crashes for row in shop.rows("select crashes from unlost_messages")) == [0, 0, 1, 1]


def test_a_hard_limit_is_kept_by_gevent(shop: Bench) -> None:
    """A body that waits is ended at its limit, three times, and is then a letter; the worker lives on."""
    start(shop, "gevent")
    shop.call("m.too_slow.delay('slow')")
    shop.wait_for(lambda: len(shop.letters()) == 1, "it is a letter")
    assert shop.letters()[0][0]["x-unlost-death-reason"] == "poison"
    assert shop.runs() == {"slow": 3}
    assert shop.workers[0].poll() is None
