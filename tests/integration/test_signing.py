"""Real workers that believe only what is signed, and the letters of the rest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.gates import gated
from tests.support.signing import KEYS, SEAL
from tests.support.workers import Bench, bench
from unlost.core import headers as h
from unlost.core.message import Outgoing
from unlost.core.signing import Seal
from unlost.deadletter import DeadLetters, Redrive
from unlost.testing.brokers import Vhost

# What is believed does not depend on the broker's release.
pytestmark = pytest.mark.one_broker

SIGNING = json.dumps({"keys": KEYS, "max_age": 3600})
JSON = {"content_type": "application/json", "content_encoding": "utf-8"}
LETTERS = "t.work.dlq"
LONG_AGO = datetime.now(UTC) - timedelta(days=1)


def call(ident: str, task: str = "t.effect", embed: Any = None, **headers: Any) -> Outgoing:
    """Make a task message whose argument is its id."""
    return Outgoing(
        exchange="t",
        routing_key="t.work",
        body=json.dumps([[ident], {}, embed or {}]),
        headers={"lang": "py", "task": task, "id": ident, "retries": 0, **headers},
        properties=JSON,
    )


def signed(message: Outgoing, at: datetime | None = None, seal: Seal = SEAL) -> Outgoing:
    """Sign a message as a client does that has the key."""
    return seal.sign(message, at or datetime.now(UTC))


@pytest.fixture
def shop(vhost: Vhost, tmp_path: Path) -> Iterator[Bench]:
    """Workers and clients that sign, on a fresh vhost."""
    with bench(vhost, tmp_path, UNLOST_SIGNING=SIGNING, UNLOST_PARK="2") as made:
        yield made


def publish(shop: Bench, *messages: Outgoing) -> None:
    """Publish messages as they are."""
    for message in messages:
        shop.publish_raw(message.body, message.headers, **message.properties)


def reasons(shop: Bench) -> Counter[str]:
    """Return why letters died."""
    return Counter(headers[h.DEATH_REASON] for headers, _ in shop.letters())


def test_only_what_is_signed_runs_and_the_rest_is_dead_lettered(shop: Bench, tmp_path: Path) -> None:
    """Retries, links and redrives of what is signed run; what is forged, unsigned or late is a letter."""
    genuine = signed(call("genuine"))
    errback = {"task": "t.effect", "args": ["errback"], "kwargs": {}, "options": {}, "immutable": True}
    stranger = Seal(keys={"k1": b"x" * 32}, sign_with="k1")
    publish(
        shop,
        genuine,
        genuine,
        call("unsigned", embed={"errbacks": [errback]}),
        replace(genuine, body='[["forged"],{},{}]'),
        signed(call("stranger"), seal=stranger),
        signed(call("late"), LONG_AGO),
        signed(call("late-unknown", "t.nobody"), LONG_AGO),
        signed(call("parked", "t.nobody")),
    )
    shop.start("--concurrency=1")
    shop.call(
        "m.effect.apply_async(('linked',), link=m.effect.si('after'))\n"
        "m.recovers.delay('retried')\n"
        "m.permanent.delay('dead')"
    )
    # Too late only for what has never been seen.
    publish(shop, signed(call("genuine"), LONG_AGO))
    expected = {"unsigned": 1, "bad-signature": 2, "expired-signature": 2, "permanent": 1, "unknown-task": 1}
    shop.wait_for(lambda: reasons(shop) == expected, "the letters are there")
    shop.wait_for(lambda: shop.runs()["retried"] == 2 and shop.runs()["after"] == 1, "the rest has run")
    assert shop.effects() == {"genuine": 1, "linked": 1, "after": 1}
    assert shop.runs() == {"genuine": 1, "linked": 1, "after": 1, "retried": 2, "dead": 1}

    desk = DeadLetters(shop.vhost.amqp_url, folder=tmp_path / "desk")
    without = desk.preview(LETTERS, Redrive())
    assert dict(without.kept) == {"no-keys": 6, "unsigned": 1}
    assert "UNLOST_SIGNING" in " ".join(without.why)
    plan = Redrive(seal=SEAL, tasks={"t.effect", "t.permanent"})
    report = desk.redrive(LETTERS, plan, blind=True)
    assert report.sent == 1
    # The worker can be faster than the redrive.
    report.kept.pop("came-back", None)
    assert dict(report.kept) == {"unsigned": 1, "bad-signature": 2, "expired-signature": 1, "unknown-task": 2}
    shop.wait_for(lambda: shop.runs()["dead"] == 2, "the letter that was sent back has run")
    shop.wait_for(lambda: reasons(shop) == expected, "and is a letter again")
    assert "errback" not in shop.runs()
    vouched = replace(plan, trust=True, run_again=True)
    assert desk.redrive(LETTERS, vouched, blind=True).sent == 5
    shop.wait_for(lambda: shop.effects()["unsigned"] == shop.effects()["late"] == 1, "vouched for, they run")


def test_what_is_held_or_parked_comes_back_believed(shop: Bench) -> None:
    """The copies that a worker makes of signed messages are signed anew, with what it has changed in them."""
    shop.settings = {**shop.settings, "UNLOST_PARK": "60", "UNLOST_LEASE": "4"}
    shop.start()
    shop.call("[m.works.apply_async(('held', 3), task_id='held') for _ in range(2)]")
    shop.wait_for(lambda: shop.log().count("[held] received") == 3, "the second copy was held, and came back")
    shop.wait_for(lambda: shop.states() == {"done": 1}, "it is done")
    shop.stop()
    shop.settings = {**shop.settings, "TEST_WITHOUT_TASKS": "t.effect"}
    ignorant = shop.start()
    publish(shop, signed(call("parked")))
    shop.wait_for(lambda: shop.log(1).count("is parked for") > 1, "it was parked, came back and is again")
    ignorant.kill()
    del shop.settings["TEST_WITHOUT_TASKS"]
    shop.start()
    shop.wait_for(lambda: shop.effects() == {"held": 1, "parked": 1}, "a worker that knows the task runs it")
    assert shop.letters() == []


def test_a_bulk_is_believed(shop: Bench) -> None:
    """Every message of an ``apply_many`` bears a signature of its own."""
    shop.start()
    shop.call("m.effect.apply_many([('é%d' % n,) for n in range(20)]).raise_for_problems()")
    shop.wait_for(lambda: shop.effects() == {f"é{n}": 1 for n in range(20)}, "all have run")
    assert shop.letters() == []


def test_what_is_sent_to_its_own_queue_is_believed_there(vhost: Vhost, tmp_path: Path) -> None:
    """A message on another queue than its breaker's is moved there, signed anew, and runs."""
    with gated(vhost, tmp_path, UNLOST_SIGNING=SIGNING) as bank:
        bank.start()
        bank.call("m.pay.apply_async((1,), queue='g.other')")
        bank.wait_for(lambda: bank.paid() == {1}, "it has run")
        assert "is sent to g.bank" in bank.log()
        assert bank.letters("g.bank.dlq") == bank.letters("g.other.dlq") == []


def test_what_cannot_be_signed_anew_is_a_letter(shop: Bench) -> None:
    """A retry and a parked copy end as letters that say so, and a letter is one without a signature."""
    shop.start(module="tests.support.unsignable")
    shop.call(
        "m.recovers.apply_async(('retried',), task_id='unsignable-retry')\n"
        "m.permanent.apply_async(('dead',), task_id='unsignable-letter')"
    )
    publish(shop, signed(call("unsignable-parked", "t.nobody")), signed(call("fine")))
    expected = {"unsignable": 2, "permanent": 1}
    shop.wait_for(lambda: reasons(shop) == expected, "all are letters")
    shop.wait_for(lambda: shop.effects() == {"fine": 1}, "what can be signed runs")
    assert shop.runs() == {"retried": 1, "dead": 1, "fine": 1}
    for headers, _ in shop.letters():
        assert h.SIGNATURE not in headers
        if headers[h.DEATH_REASON] == "unsignable":
            assert "unknown encoding" in headers[h.DEATH_EXCEPTION]
    assert shop.letters("t.work") == []


def test_without_verification_a_forged_message_runs(vhost: Vhost, tmp_path: Path) -> None:
    """The control: the same forged message runs where signatures are made and not verified."""
    off = {"UNLOST_SIGNING": SIGNING, "UNLOST_DANGEROUSLY_WITHOUT": "signatures"}
    with bench(vhost, tmp_path, **off) as shop:
        publish(shop, call("unsigned"))
        shop.start("--concurrency=1")
        shop.wait_for(lambda: shop.effects()["unsigned"] == 1, "the forged message ran")
        assert shop.letters() == []
