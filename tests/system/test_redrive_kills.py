"""Letters are sent back while the tool and the broker are killed: each has its effect once, none is lost."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.forks import forks
from tests.support.letters import a_letter, put
from tests.support.publishing import wait_for_leader
from tests.support.redriving import Errand, Kill, Point, run_and_die
from tests.support.workers import Bench, bench
from unlost.broker.management import Management
from unlost.core import headers as h
from unlost.core.clock import SystemClock, epoch_ms
from unlost.core.message import Outgoing
from unlost.testing.brokers import Broker, Vhost

pytestmark = [pytest.mark.system, pytest.mark.one_broker]

WORK, LETTERS, DLX = "t.work", "t.work.dlq", "t.dlx"
TASK = "t.lands"


@dataclass(frozen=True)
class Ordeal:
    """How many letters, how often the tool is killed, and during which lives the broker fails it, too."""

    letters: int
    kills: int
    troubled: frozenset[int] = frozenset()
    window: int = 500
    patience: timedelta = timedelta(minutes=2)
    seed: int = 8

    def deaths(self) -> Iterator[Kill]:
        """Yield where each life of the tool ends, all kinds of points in turn."""
        chance = random.Random(self.seed)
        share = self.letters // (self.kills + 2)
        for number in range(self.kills):
            point = list(Point)[number % len(Point)]
            batches = max(1, share // self.window)
            nth = share if point is Point.TAKEN else batches
            yield Kill(point, max(1, int(nth * chance.uniform(0.5, 1))))


@contextmanager
def letters_in(vhost: Vhost, folder: Path, count: int, **settings: str) -> Iterator[Bench]:
    """Yield a bench whose queue of letters holds the letters of tasks 0, 1, 2, ..."""
    now = epoch_ms(SystemClock().now())
    with bench(vhost, folder, **settings) as made:
        put(vhost.amqp_url, (lost(number, now) for number in range(count)))
        yield made


def lost(number: int, now_ms: int) -> Outgoing:
    """Return the letter of a task that would have had effect ``number``."""
    published: dict[str, Any] = {h.FIRST_PUBLISHED: now_ms}
    letter = a_letter(f"m{number}", order=number, task=TASK, queue=WORK, **published)
    return letter.to(DLX, WORK)


def redrive_under_kills(
    ordeal: Ordeal, bench: Bench, trouble: Callable[[], None] = lambda: None, cut_at: int | None = None
) -> None:
    """Send all back, killing the tool as often as said.

    Args:
        ordeal: What happens.
        bench: Where.
        trouble: Happens to the broker during the troubled lives.
        cut_at: The tool's connection is cut at this letter of a troubled life.
    """
    errand = Errand(bench.vhost.amqp_url, LETTERS, str(bench.folder / "desk"), ordeal.window)
    with forks("tests.support.redriving") as children, ThreadPoolExecutor(1) as aside:
        for life, kill in enumerate(ordeal.deaths()):
            is_troubled = life in ordeal.troubled
            troubled = aside.submit(trouble if is_troubled else lambda: None)
            ended = run_and_die(children, errand, kill, cut_at if is_troubled else None)
            troubled.result()
            assert ended.returncode == -9, ended.stderr
        ended = run_and_die(children, errand, None)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["clean"]


def restart(broker: Broker, bench: Bench) -> None:
    """Kill the broker, and start it again once the tool has had time to notice."""
    broker.kill()
    broker.restart()
    with Management(bench.vhost.management_url, bench.vhost.name) as management:
        for queue in (WORK, LETTERS):
            wait_for_leader(management, queue)


def judge(ordeal: Ordeal, bench: Bench) -> None:
    """Check that every letter's task has had its effect exactly once, and nothing is left anywhere."""
    expected = {str(number) for number in range(ordeal.letters)}
    bench.wait_for(lambda: done(bench) >= ordeal.letters, "every task has had its effect", ordeal.patience)
    found = bench.effects()
    assert set(found) == expected
    assert {label: times for label, times in found.items() if times != 1} == {}
    assert bench.letters(LETTERS) == bench.letters("t.unroutable") == []


def done(bench: Bench) -> int:
    """Return how many effects there are."""
    return int(bench.rows("select count(distinct label) from effects")[0][0])


def test_a_redrive_that_is_killed_again_and_again_has_each_effect_once(vhost: Vhost, tmp_path: Path) -> None:
    """Hundreds of letters, the tool killed at each of its points and cut off once: each effect once."""
    ordeal = Ordeal(letters=400, kills=5, troubled=frozenset({2}), window=20)
    with letters_in(vhost, tmp_path, ordeal.letters) as bench:
        bench.start()
        redrive_under_kills(ordeal, bench, cut_at=10)
        judge(ordeal, bench)


def test_without_the_ledger_the_same_kills_repeat_effects(vhost: Vhost, tmp_path: Path) -> None:
    """The control: with the lease off, what was confirmed and not yet journaled has its effect twice."""
    ordeal = Ordeal(letters=60, kills=1, window=20)
    with letters_in(vhost, tmp_path, ordeal.letters, UNLOST_DANGEROUSLY_WITHOUT="lease") as bench:
        bench.start()
        errand = Errand(vhost.amqp_url, LETTERS, str(tmp_path / "desk"), ordeal.window)
        with forks("tests.support.redriving") as children:
            assert run_and_die(children, errand, Kill(Point.CONFIRMED, 2)).returncode == -9
            bench.wait_for(lambda: done(bench) >= 2 * ordeal.window, "the first two windows are done")
            assert run_and_die(children, errand, None).returncode == 0
        bench.wait_for(lambda: done(bench) == ordeal.letters, "every task has had its effect")
        bench.wait_for(lambda: max(bench.effects().values()) == 2, "some had it twice")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_letters_have_each_effect_once(own_broker: Broker, tmp_path: Path) -> None:
    """The same with 100,000 letters, twenty kills of the tool and two of the broker."""
    ordeal = Ordeal(letters=100_000, kills=20, troubled=frozenset({6, 13}), patience=timedelta(minutes=40))
    with own_broker.fresh_vhost() as vhost, letters_in(vhost, tmp_path, ordeal.letters) as bench:
        bench.start()
        began = time.monotonic()
        redrive_under_kills(ordeal, bench, lambda: restart(own_broker, bench))
        redriven = time.monotonic() - began
        judge(ordeal, bench)
        print(
            f"{ordeal.letters} letters redriven in {redriven:.0f} s and done once each in "
            f"{time.monotonic() - began:.0f} s; tool killed {ordeal.kills} times, "
            f"broker {len(ordeal.troubled)} times"
        )
