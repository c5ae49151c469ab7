"""A classic queue becomes a quorum queue under load: no task is lost, none has its effect twice."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.live_migration import DRAIN_PATIENCE, NEW, OLD, Live, live_migration
from tests.support.migrating import management_of
from unlost.testing.brokers import Vhost

pytestmark = [pytest.mark.system, pytest.mark.one_broker]


def migrate_under_load(
    live: Live, count: int, deaths: Callable[[], Iterator[int]], *, window: int, pause: float
) -> None:
    """Fill the old queue, migrate it while clients publish and workers run, and wait until all is done."""
    live.fill(count)
    old_worker = live.bench.start("-Q", OLD)
    live.publish(pause)
    live.bench.start("-Q", NEW)
    live.migrate(deaths(), "ready to finish", settle=6, window=window, finish=False)
    old_worker.terminate()
    old_worker.wait(120)
    live.migrate(deaths(), "done", settle=6, window=window)
    live.stop_publishing()
    expected = set(live.acknowledged)
    live.bench.wait_for(
        lambda: expected <= set(live.bench.effects()), "every task has had its effect", DRAIN_PATIENCE
    )


def judge(live: Live) -> None:
    """Check that every acknowledged task has had its effect exactly once, and nothing is left."""
    effects = live.bench.effects()
    assert set(effects) == set(live.acknowledged)
    assert {label: times for label, times in effects.items() if times != 1} == {}
    assert live.bench.letters("t.work.dlq") == live.bench.letters("t.unroutable") == []
    with management_of(live.bench.vhost) as management:
        assert OLD not in {each.declared.name for each in management.queues()}


@pytest.mark.parametrize("broker", ["docker"], indirect=True)
def test_a_backlog_is_migrated_while_workers_run(vhost: Vhost, tmp_path: Path) -> None:
    """With the tool killed at several points, all of a backlog and of what is published is done once."""
    with live_migration(vhost, tmp_path) as live:
        migrate_under_load(live, 300, lambda: itertools.cycle([9, 14, 11, 40]), window=50, pause=0.05)
        judge(live)
        assert live.killed > 2


@pytest.mark.long
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("broker", ["docker"], indirect=True)
def test_fifty_thousand_are_migrated_while_workers_run(vhost: Vhost, tmp_path: Path) -> None:
    """The same with 50,000 messages, killed at every step, and while messages are moved again and again."""
    with live_migration(vhost, tmp_path) as live:
        began = time.monotonic()
        migrate_under_load(live, 50_000, lambda: itertools.count(1), window=256, pause=0.05)
        seconds = time.monotonic() - began
        judge(live)
        journey = live.journey
        print(
            f"{len(live.acknowledged)} tasks done once each in {seconds:.0f} s; killed {live.killed} times; "
            f"{journey.moved} moved as far as written down, {journey.redelivered} of them redelivered; "
            f"states: {dict(Counter(live.bench.states()))}"
        )
        assert live.killed >= len(journey.plan.steps)
