"""Deliveries that are held for too long, and hosts that die with all they hold."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.misbehaving_topology import TOPOLOGY
from tests.support.workers import ROOT, Bench, bench
from unlost.testing.brokers import Vhost

TIMEOUT = 3

#: When RabbitMQ looks for deliveries that are overdue is its own affair.
PATIENCE = timedelta(seconds=120)


def allowing(seconds: int) -> dict[str, Any]:
    """Return a topology whose work queue has this consumer timeout."""
    return {**TOPOLOGY, "queues": {"t.work": {"consumer_timeout": seconds}}}


def supports_policy(shop: Bench) -> bool:
    """Whether this broker has a consumer timeout for each queue, and a client can be told of it."""
    with shop.channel() as channel:
        version = str(channel.connection.server_properties["version"])
    return tuple(int(part) for part in version.split(".")[:2]) >= (4, 3)


@pytest.mark.one_broker
def test_a_run_past_the_consumer_timeout_is_reported_and_harms_nobody(vhost: Vhost, tmp_path: Path) -> None:
    """The log names task, queue and timeout; the body goes on and has its effect once; so have the others."""
    with bench(vhost, tmp_path, allowing(TIMEOUT), UNLOST_LEASE="4") as shop:
        if not supports_policy(shop):
            pytest.skip("before 4.3 the broker looks once a minute, and only at its own timeout")
        shop.start("--concurrency=2")
        shop.call("m.waits_then_commits.delay('slow')")
        shop.wait_for(lambda: shop.runs()["slow"] == 1, "it runs")
        shop.wait_for(lambda: "consumer timeout: t.waits_then_commits" in shop.log(), "it is told", PATIENCE)
        assert f"the consumer timeout of 't.work' is 0:00:0{TIMEOUT}" in shop.log()
        shop.call("for n in range(5): m.effect.delay(f'n{n}')")
        shop.wait_for(lambda: len(shop.effects()) == 5, "the others are done")
        shop.call("m.note('release')")
        shop.wait_for(lambda: shop.states() == {"done": 6}, "all are done", timedelta(seconds=60))
        assert shop.effects() == {"slow": 1, **{f"n{n}": 1 for n in range(5)}}
        assert shop.runs()["slow"] == 1
        assert shop.workers[0].poll() is None


@pytest.mark.one_broker
def test_a_task_that_may_outlast_its_queues_timeout_is_refused(vhost: Vhost, tmp_path: Path) -> None:
    """``time_limit`` at or above ``consumer_timeout``: an error that names both, and the queue."""
    with bench(vhost, tmp_path, allowing(1)) as shop:
        done = subprocess.run(
            [sys.executable, "-c", "import tests.support.misbehaving as m; m.app.finalize()"],
            env=shop.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "time_limit=1 is not below the consumer timeout of its queue 't.work', 0:00:01" in done.stderr


@pytest.mark.one_broker
def test_those_lost_with_a_killer_are_taken_over_apart(vhost: Vhost, tmp_path: Path) -> None:
    """A message that kills every worker is poison at its limit; what was lost beside it is done."""
    with bench(vhost, tmp_path, UNLOST_LEASE="2", UNLOST_MAX_LOST="3") as shop:
        shop.start("--concurrency=4")
        innocents = {f"n{n}": 1 for n in range(3)}
        shop.call("for n in range(3): m.waits_then_commits.delay(f'n{n}')")
        shop.wait_for(lambda: len(shop.runs()) == 3, "the innocents run")
        shop.call("m.before_commit.delay('killer', 'kill-parent', 99)")
        killed = 0
        while not shop.letters():
            shop.workers[-1].wait(90)
            killed += 1
            if killed == 1:
                shop.call("m.note('release')")
            shop.start("--concurrency=4", wait=False)
            shop.wait_for(
                lambda: shop.letters() or shop.workers[-1].poll() is not None, "the killer strikes or is dead"
            )
        shop.wait_for(lambda: shop.effects() == innocents, "the innocents are done")
        [(headers, body)] = shop.letters()
        assert headers["x-unlost-death-reason"] == "poison"
        assert headers["x-unlost-lost"] == 3
        assert json.loads(body)[0][0] == "killer"
        assert killed == 3
        rows = shop.rows("select lost from unlost_messages where message like 't.waits%'")
        assert max(row.lost for row in rows) < 3


@pytest.mark.one_broker
def test_a_letter_says_how_often_its_message_was_lost(vhost: Vhost, tmp_path: Path) -> None:
    """A takeover after a worker's death is counted, and shown whatever the letter's reason is."""
    with bench(vhost, tmp_path, UNLOST_LEASE="2") as shop:
        shop.start()
        shop.call("m.lost_then_permanent.delay('x')")
        shop.workers[0].wait(90)
        shop.start()
        shop.wait_for(shop.letters, "the letter is there")
        [(headers, _)] = shop.letters()
        shown = [headers[f"x-unlost-{name}"] for name in ("death-reason", "lost", "crashes", "attempt")]
        assert shown == ["permanent", 1, 0, 1]
