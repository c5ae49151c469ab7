"""A child that dies ends its lease through the parent that sees it: nobody waits for the lease to expire."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.confined import confined_worker
from tests.support.workers import SOON, Bench, bench
from unlost.testing.brokers import Vhost
from unlost.testing.brokers.docker import unavailable

pytestmark = pytest.mark.one_broker

#: Far beyond any patience of these tests: a test that waited for it would fail.
LEASE = 100 * SOON

#: Every way in which a child goes; ``oom`` runs into a real limit of its memory, ``fault`` reads address 0.
WAYS = ("kill", "segv", "fault", "abort", "exit", "_exit", "memory", "oom")


@pytest.fixture
def shop(vhost: Vhost, tmp_path: Path) -> Iterator[Bench]:
    """The misbehaving app on a fresh vhost, with a lease that outlasts every test."""
    with bench(vhost, tmp_path, UNLOST_LEASE=str(LEASE.total_seconds())) as made:
        yield made


def test_every_crash_is_counted_once_and_its_lease_ended_at_once(shop: Bench) -> None:
    """Whatever ends a child, its message runs again long before its lease expires, and has one effect."""
    worker = shop.start()
    shop.call(f"for what in {WAYS!r}: m.before_commit.delay(what, what)")
    shop.wait_for(lambda: shop.states() == {"done": len(WAYS)}, "all are done")
    assert shop.effects() == dict.fromkeys(WAYS, 1)
    assert shop.runs() == dict.fromkeys(WAYS, 2)
    assert [tuple(row) for row in shop.rows("select distinct crashes, lost from unlost_messages")] == [(1, 0)]
    assert worker.poll() is None


def test_a_hard_time_limit_ends_the_lease_at_once(shop: Bench) -> None:
    """A body that never ends is killed, and runs again at once: three times, then it is poison."""
    worker = shop.start()
    shop.call("m.too_slow.delay('s')")
    shop.wait_for(shop.letters, "the letter is there", timedelta(minutes=1))
    [(headers, _)] = shop.letters()
    assert (headers["x-unlost-death-reason"], headers["x-unlost-crashes"]) == ("poison", 3)
    assert shop.runs()["s"] == 3
    assert worker.poll() is None


def test_what_the_kernel_kills_for_its_memory_is_counted(shop: Bench) -> None:
    """A body that outgrows its container comes back, or is poison; its neighbours have one effect each."""
    if (reason := unavailable(os.environ)) is not None:
        pytest.skip(f"no container for a limit of memory: {reason}")
    neighbours = {f"n{number}": 1 for number in range(6)}
    with confined_worker(shop) as worker:
        shop.call(
            "m.before_commit.delay('once', 'eat'); m.before_commit.delay('always', 'eat', 99)\n"
            "m.before_commit.delay('refused', 'oom', 99)\n"
            f"for label in {[*neighbours]}: m.works.delay(label, 0.5)"
        )
        ends = {"once": 1, **neighbours}
        shop.wait_for(lambda: shop.effects() == ends and len(shop.letters()) == 2, "all have ended")
        assert worker.is_running
        assert worker.kills() == 4
    letters = {json.loads(body)[0][0]: headers for headers, body in shop.letters()}
    assert set(letters) == {"always", "refused"}
    for headers in letters.values():
        assert (headers["x-unlost-death-reason"], headers["x-unlost-crashes"]) == ("poison", 3)
    assert (shop.runs()["once"], shop.runs()["always"], shop.runs()["refused"]) == (2, 3, 3)
    rows = shop.rows("select sum(crashes) as crashes from unlost_messages where state = 'done'")
    assert rows[0].crashes == 1
