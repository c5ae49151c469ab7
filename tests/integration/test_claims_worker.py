"""Large payloads travel as claims, and a real worker fetches them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.workers import Bench, bench
from unlost.core import headers as h
from unlost.tasks.crashpoints import Point
from unlost.testing.brokers import Vhost

pytestmark = pytest.mark.one_broker

LARGE = "x" * 3000
UNLOST = str(Path(sys.executable).parent / "unlost")


@pytest.fixture
def shop(vhost: Vhost, tmp_path: Path) -> Iterator[Bench]:
    """The misbehaving app with a claim store for bodies of more than 2,000 bytes."""
    settings = {"UNLOST_CLAIM_STORE": f"file://{tmp_path}/claims", "UNLOST_CLAIM_ABOVE": "2000"}
    with bench(vhost, tmp_path, UNLOST_LEASE="4", **settings) as made:
        yield made


def test_large_results_reach_links_and_duplicates(vhost: Vhost, tmp_path: Path) -> None:
    """The ledger keeps a reference, and whoever asks for the result gets all of it."""
    settings = {"UNLOST_CLAIM_STORE": f"file://{tmp_path}/claims", "UNLOST_RESULT_LIMIT": "2000"}
    with bench(vhost, tmp_path, **settings) as shop:
        shop.start()
        twice = "m.leaves_trace.apply_async(({text!r},), task_id='one', link=m.measures.s())"
        shop.call(twice.format(text=LARGE))
        shop.wait_for(lambda: shop.runs()["measured-3000"] == 1, "the link has run")
        shop.call(twice.format(text=LARGE))
        shop.wait_for(lambda: shop.runs()["measured-3000"] == 2, "the duplicate's link has run")
        assert shop.runs()[LARGE] == 1
        [(result,)] = shop.rows("select result from unlost_messages where message like '%[one]'")
        assert result.startswith("claim:")


def test_a_result_over_the_limit_is_a_letter_without_a_claim_store(vhost: Vhost, tmp_path: Path) -> None:
    """It says how large it is and what can be done; nothing is cut off in silence."""
    with bench(vhost, tmp_path, UNLOST_RESULT_LIMIT="2000") as shop:
        shop.start()
        shop.call(f"m.leaves_trace.delay({LARGE!r})")
        shop.wait_for(shop.letters, "the letter is there")
        [(headers, _)] = shop.letters()
        assert headers[h.DEATH_REASON] == "permanent"
        assert "result_limit=2000" in headers[h.DEATH_EXCEPTION]


def waiting_sizes(shop: Bench) -> list[tuple[int, bool]]:
    """Return, for each message in the queue, its size and whether it carries a claim."""
    return [(len(body), h.CLAIM in headers) for headers, body in shop.letters("t.work")]


def test_large_payloads_run_with_all_that_they_hold(shop: Bench) -> None:
    """Arguments, a chain, compressed arguments, a retry and a bulk: small on the wire, whole in the body."""
    shop.call(
        f"large = {LARGE!r}\n"
        "m.effect.delay('a' + large)\n"
        "m.effect.apply_async(args=['b' + large], compression='zlib')\n"
        "from celery import chain\n"
        "chain(m.effect.si('c'), m.effect.si('d' + large), m.effect.si('e'))()\n"
        "m.recovers.delay('f' + large)\n"
        "m.effect.delay('g')\n"
        "m.effect.apply_many([('h' + large,), ('i' + large,), ('j',)])"
    )
    sizes = waiting_sizes(shop)
    assert max(size for size, _ in sizes) < 2000
    # Compressed, the second is small enough to travel by itself.
    assert sorted(claimed for _, claimed in sizes) == [False] * 3 + [True] * 5
    shop.start()
    expected = {"a" + LARGE, "b" + LARGE, "c", "d" + LARGE, "e", "g", "h" + LARGE, "i" + LARGE, "j"}
    shop.wait_for(lambda: expected <= set(shop.effects()), "all have had their effect")
    shop.wait_for(lambda: shop.runs()["f" + LARGE] == 2, "the retry has run")
    assert all(count == 1 for count in shop.effects().values())
    assert shop.letters() == []


def test_a_payload_that_is_gone_ends_as_a_letter(shop: Bench, tmp_path: Path) -> None:
    """The body does not run; the letter says why, and keeps the reference for when the payload is back."""
    shop.call(f"m.effect.delay({LARGE!r})")
    shutil.rmtree(tmp_path / "claims")
    shop.start()
    shop.wait_for(lambda: len(shop.letters()) == 1, "it is a letter")
    ((headers, body),) = shop.letters()
    assert headers[h.DEATH_REASON] == "payload-lost"
    assert "is gone" in headers[h.DEATH_EXCEPTION]
    assert headers[h.CLAIM] == 1
    assert json.loads(body)["claim"]["size"] > len(LARGE)
    assert not shop.runs()


@pytest.mark.parametrize("compression", ["", "zlib"])
def test_who_waits_for_a_lost_payload_is_told_when_it_is_a_letter(
    shop: Bench, tmp_path: Path, compression: str
) -> None:
    """The errback of a message whose payload is gone runs."""
    large = f"''.join(map(str, range({len(LARGE)})))"
    how = f"link_error=m.effect.si('told'), compression={compression!r}"
    shop.call(f"m.effect.apply_async(({large},), {how})")
    shutil.rmtree(tmp_path / "claims")
    shop.start()
    shop.wait_for(lambda: shop.effects() == {"told": 1}, "the errback has run")
    shop.wait_for(lambda: len(shop.letters()) == 1, "it is a letter")


def test_nobody_is_told_of_a_payload_that_another_holder_has(shop: Bench, tmp_path: Path) -> None:
    """A worker that misses the payload loses its lease before it decides: the copy's success stands."""
    shop.call(f"m.effect.apply_async(({LARGE!r},), link_error=m.effect.si('told'))")
    ((headers, body),) = shop.letters("t.work")
    (tmp_path / "claims").rename(tmp_path / "away")
    shop.settings = {**shop.settings, "TEST_STOPS_AT": Point.ACQUIRED, "TEST_STOPS_IN": str(tmp_path)}
    only_one = ("--concurrency=1", "--prefetch-multiplier=1")
    late = shop.start(*only_one, module="tests.support.stops_at")
    shop.wait_for((tmp_path / "there").exists, "a worker without the payload has the lease")
    # Nobody renews the lease, and no other delivery goes there.
    os.kill(late.pid, signal.SIGSTOP)
    (tmp_path / "away").rename(tmp_path / "claims")
    shop.publish_raw(body, headers, content_type="application/json", content_encoding="utf-8")
    shop.start()
    shop.wait_for(lambda: shop.effects() == {LARGE: 1}, "the copy was taken over and has run")
    (tmp_path / "on").touch()
    os.kill(late.pid, signal.SIGCONT)
    shop.wait_for(lambda: "cannot run now" in shop.log(0), "the late worker has put its copy back")
    shop.wait_for(lambda: shop.states() == {"done": 1}, "nothing else was begun")
    late.kill()
    shop.call("m.effect.delay('last')")
    shop.wait_for(lambda: shop.states() == {"done": 2}, "what was published after it is done")
    assert shop.effects() == {LARGE: 1, "last": 1}
    assert shop.letters() == []


def test_a_worker_without_a_claim_store_says_so(vhost: Vhost, shop: Bench) -> None:
    """A claim is never taken for an empty payload: the letter names the missing setting."""
    shop.call(f"m.effect.delay({LARGE!r})")
    shop.settings = {"UNLOST_LEASE": "4"}
    shop.start()
    shop.wait_for(lambda: len(shop.letters()) == 1, "it is a letter")
    ((headers, _body),) = shop.letters()
    assert "UNLOST_CLAIM_STORE" in headers[h.DEATH_EXCEPTION]
    assert not shop.runs()


def test_done_payloads_are_swept_after_their_retention(shop: Bench, tmp_path: Path) -> None:
    """The sweep leaves the payload of a letter, and deletes that of a done message, when told to."""
    shop.call(f"m.effect.delay('a' + {LARGE!r})\nm.permanent.delay('b' + {LARGE!r})")
    shop.start()
    shop.wait_for(lambda: len(shop.letters()) == 1 and shop.effects().total() == 1, "one is done, one dead")
    shop.wait_for(lambda: shop.states() == {"done": 1, "dead": 1}, "both are settled")
    for day in (tmp_path / "claims").iterdir():
        day.rename(day.with_name("2020-01-01"))
    sweep = [UNLOST, "claims", "sweep", "--json", "--store", shop.store]
    sweep += ["--claim-store", shop.settings["UNLOST_CLAIM_STORE"]]
    asked = subprocess.run(sweep, capture_output=True, text=True, check=False)
    assert asked.returncode == 1, asked.stderr
    assert len(list((tmp_path / "claims").rglob("*,*"))) == 2
    subprocess.run([*sweep, "--yes"], capture_output=True, check=True)
    (kept,) = (tmp_path / "claims").rglob("*,*")
    assert kept.parent.name == "t.permanent"
    assert json.loads(asked.stdout)["keys"][0].startswith("2020-01-01/t.effect/")
