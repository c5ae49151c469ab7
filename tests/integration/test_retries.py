"""Retries of real workers: one budget, whoever asks for the next attempt, and the same message each time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.workers import Bench, bench
from unlost.testing.brokers import Vhost

pytestmark = pytest.mark.one_broker


@pytest.fixture
def shop(vhost: Vhost, tmp_path: Path) -> Iterator[Bench]:
    """The misbehaving app on a fresh vhost."""
    with bench(vhost, tmp_path) as made:
        yield made


def test_attempts_in_process_and_across_deliveries_share_one_budget(shop: Bench) -> None:
    """Three attempts are three, two of them in one delivery, and the letter says so."""
    shop.start()
    shop.call("m.tries_in_process.delay('t')")
    shop.wait_for(shop.letters, "the letter is there")
    assert shop.runs() == {"t-1-left-2": 1, "t-2-left-1": 1, "t-3-left-0": 1}
    [(headers, _)] = shop.letters()
    assert (headers["x-unlost-death-reason"], headers["x-unlost-attempt"]) == ("budget-spent", 3)


def test_a_task_asks_for_its_next_attempt_itself(shop: Bench) -> None:
    """``raise self.retry_later(after=...)`` makes one more attempt of the same message."""
    shop.start()
    shop.call("m.postponed.delay('p')")
    shop.wait_for(lambda: shop.states() == {"done": 1}, "it is done")
    assert shop.runs() == {"p": 2}


def test_celerys_autoretry_keeps_its_budget_the_message_and_its_priority(shop: Bench) -> None:
    """A task that moves over by its base class alone is retried on our path and ends in a letter."""
    shop.start()
    task_id = shop.call("print(m.celery_autoretry.apply_async(('a',), priority=7).id)")
    shop.wait_for(shop.letters, "the letter is there")
    assert shop.runs() == {"a": 2}
    with shop.channel() as channel:
        letter = channel.basic_get("t.work.dlq")
    headers = letter.properties["application_headers"]
    assert (headers["id"], headers["x-unlost-attempt"], letter.properties["priority"]) == (task_id, 2, 7)
    assert headers["x-unlost-death-exception-type"] == "builtins.KeyError"
