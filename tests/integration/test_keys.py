"""Messages with the same key are the same work: one of them does it, the others get its result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.workers import Bench, bench
from unlost.testing.brokers import Vhost

pytestmark = pytest.mark.one_broker


@pytest.fixture
def shop(vhost: Vhost, tmp_path: Path) -> Iterator[Bench]:
    """The keyed tasks on a fresh vhost, with a short lease."""
    with bench(vhost, tmp_path, UNLOST_LEASE="4") as made:
        made.module = "tests.support.keyed"
        yield made


def reasons(shop: Bench) -> list[str]:
    """Return why letters are letters."""
    return sorted(headers["x-unlost-death-reason"] for headers, _ in shop.letters())


def test_a_second_message_gets_the_recorded_result(shop: Bench) -> None:
    """However many messages bring a key, also while its work is under way, its effect happens once."""
    shop.start()
    shop.call(
        "for _ in range(3): m.charge.apply_async(kwargs={'order': 'a', 'seconds': 1}, link=m.receives.s())"
    )
    shop.wait_for(lambda: shop.runs()["received a-run-1"] == 3, "all links ran")
    assert shop.effects() == {"a": 1}

    shop.call("m.charge.apply_async(kwargs={'order': 'b', 'seconds': 0}, link=m.receives.s())")
    shop.wait_for(lambda: shop.runs()["received b-run-1"] == 1, "another key is another work")
    assert shop.effects() == {"a": 1, "b": 1}


def test_duplicates_end_as_the_task_says(shop: Bench) -> None:
    """Conflicts and strict duplicates are letters; ignored ones end quietly; failures free the key."""
    shop.start()
    shop.call("m.charge.delay(order='a'); m.outside.delay('X'); m.strict.delay(order='s')")
    shop.call("m.first_fails.delay(order='f')")
    shop.wait_for(lambda: shop.states()["done"] == 6 and shop.states()["dead"] == 1, "the first are through")

    with pytest.raises(AssertionError, match=r"KeyConflict: key:t\.charge.*with another payload"):
        shop.call("m.charge.delay(order='a', amount=6)")
    # A publisher that does not ask the store: the worker finds it.
    shop.call("from celery import Task; Task.apply_async(m.charge, kwargs={'order': 'a', 'amount': 6})")
    shop.call("m.strict.delay(order='s')")
    shop.call("m.other.apply_async(('X',), link=m.receives.s())")  # the same space
    shop.call("m.outside.delay('X')")
    shop.call("m.first_fails.delay(order='f')")
    shop.wait_for(lambda: len(shop.letters()) == 3, "the letters are there")
    shop.wait_for(lambda: shop.effects()["f"] == 1, "the freed key was used")
    shop.wait_for(lambda: shop.states()["dead"] == 3 and not shop.states()["leased"], "all are through")

    assert reasons(shop) == ["budget-spent", "duplicate", "key-conflict"]
    assert shop.effects() == {"a": 1, "s": 1, "f": 1}
    assert shop.runs()["X"] == 1
    assert not any("received" in label for label in shop.runs())


def test_a_crash_while_the_key_is_held_frees_it(shop: Bench) -> None:
    """A worker killed in the body leaves message and key; the next run has both and has one effect."""
    worker = shop.start()
    shop.call("m.charge.delay(order='a', seconds=3)")
    shop.wait_for(lambda: shop.states()["leased"] == 2, "message and key are leased")
    worker.kill()
    worker.wait()
    shop.start()
    shop.wait_for(lambda: shop.states() == {"done": 2}, "both are done")
    assert shop.effects() == {"a": 1}


def test_a_step_is_done_once_and_its_result_replayed(shop: Bench) -> None:
    """Attempts after the first get the recorded answer of the call, and all have one token."""
    shop.start()
    shop.call("m.steps.apply_async(kwargs={'order': 'a'}, link=m.receives.s())")
    shop.wait_for(lambda: shop.runs()["received answer-1"] == 1, "the third attempt succeeded")

    assert shop.runs()["called"] == 1
    assert [count for label, count in shop.runs().items() if label.startswith("token ")] == [3]


def test_what_is_older_than_the_memory_is_a_letter(shop: Bench) -> None:
    """A message without a row that is older than the retention may have run: an operator decides."""
    shop.settings = {**shop.settings, "UNLOST_RETENTION": "2"}
    shop.call("m.charge.delay(order='a'); import time; time.sleep(3)")
    shop.start()
    shop.wait_for(shop.letters, "the letter is there")
    assert reasons(shop) == ["too-old"]
    assert shop.effects() == {}

    [(headers, body)] = shop.letters()
    shop.publish_raw(body, headers, content_type="application/json", content_encoding="utf-8")
    shop.wait_for(lambda: len(shop.letters()) == 2, "sent back without a word, it is a letter again")
    assert shop.effects() == {}

    _, (headers, body) = shop.letters()
    headers["x-unlost-run-again"] = True
    shop.publish_raw(body, headers, content_type="application/json", content_encoding="utf-8")
    shop.wait_for(lambda: shop.effects()["a"] == 1, "it ran at the operator's word")
