"""Whatever is delivered ends: executed, or as a letter with its body and a reason; the worker lives."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from itertools import cycle, islice
from pathlib import Path

import pytest

from tests.support.figures import tell
from tests.support.fuzz import Raw, drawn, hand_made, mutated
from tests.support.fuzzing import Fates, harvest
from tests.support.raw_amqp import publish_all
from tests.support.workers import Bench, bench
from unlost.testing.brokers import Broker, Vhost

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

#: Parts of a run: drawn by hypothesis, mutated from real messages; the hand-made are on top.
DRAWN = 0.4


@pytest.fixture
def shop(vhost: Vhost, tmp_path: Path) -> Iterator[Bench]:
    """The misbehaving app; unknown tasks are given up after their first park."""
    with bench(vhost, tmp_path, UNLOST_LEASE="4", UNLOST_PARK="0.5") as made:
        yield made


def messages(shop: Bench, count: int, seed: int) -> list[Raw]:
    """Return so many messages, shuffled and numbered."""
    rng = random.Random(seed)
    real = harvest(shop)
    found = drawn(int(count * DRAWN), seed)
    made = islice(cycle(hand_made().values()), max(len(hand_made()), count // 100))
    found += made
    found += mutated(real, count - len(found), rng)
    rng.shuffle(found)
    return [message.numbered(number) for number, message in enumerate(found)]


def run(shop: Bench, given: list[Raw], patience: timedelta) -> Fates:
    """Deliver messages to one worker and return what became of them."""
    worker = shop.start()
    assert publish_all(shop.vhost.amqp_url, "t", "t.work", (each.to_amqp() for each in given)) == len(given)
    fates = Fates(shop, given)
    shop.wait_for(lambda: fates.look() or worker.poll() is not None, "every message has ended", patience)
    assert worker.poll() is None, shop.log()[-5000:]
    return fates


def judge(fates: Fates) -> None:
    """Check that each message ended, once, for a reason, and that letters hold what was sent."""
    assert fates.changed() == []
    assert [number for number, letters in fates.letters.items() if len(letters) != 1] == []
    assert [number for number, letters in fates.letters.items() if not letters[0].reason] == []
    assert fates.strangers() == []
    assert sum(fates.ends().values()) == len(fates.given)


def test_every_kind_of_malformed_message_ends_and_the_worker_lives(shop: Bench) -> None:
    """Each of the hand-made kinds is executed or dead-lettered with its body as it came."""
    given = [message.numbered(number) for number, message in enumerate(hand_made().values())]
    fates = run(shop, given, timedelta(minutes=2))
    print(dict(zip(hand_made(), map(fates.end_of, range(len(given))), strict=True)))
    judge(fates)


def test_a_few_hundred_fuzzed_messages_end_and_the_worker_lives(shop: Bench) -> None:
    """Drawn and mutated messages are executed or dead-lettered, each once; counts are conserved."""
    fates = run(shop, messages(shop, 600, seed=1), timedelta(minutes=3))
    judge(fates)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [2])
def test_twenty_thousand_fuzzed_messages_end_and_the_worker_lives(
    broker: Broker, shop: Bench, seed: int
) -> None:
    """The same with 20,000."""
    fates = run(shop, messages(shop, 20_000, seed=seed), timedelta(minutes=50))
    judge(fates)
    tell("fuzz", broker, seed=seed, messages=len(fates.given), ends=dict(fates.ends()))
