"""A child that dies ends its lease through the parent that sees it: nobody waits for the lease to expire."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.workers import SOON, Bench, bench
from unlost.testing.brokers import Vhost

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
