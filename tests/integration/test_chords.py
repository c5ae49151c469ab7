"""A chord never waits for ever: however a member ends, the body runs or its errback is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_worker_edges import publish
from tests.support.stores import Servers
from tests.support.workers import Bench, bench
from unlost.testing.brokers import Vhost

pytestmark = pytest.mark.one_broker

#: How a member of the chord ends, and the signature that makes it do so.
ENDINGS = {
    "permanent": "m.member.si('x', 'permanent')",
    "rejected": "m.member.si('x', 'reject')",
    "poison": "m.member.si('x', 'kill')",
    "time-limit": "m.member.si('x', 'hang')",
    "expired": "m.member.si('x').set(expires=datetime(2020, 1, 1, tzinfo=UTC))",
    "unknown-task": "m.app.signature('t.ghost', immutable=True)",
    "malformed": "m.member.si('x').set(time_limit='soon')",
    "undecodable": "m.member.si('x').set(task_id='torn-member')",
    "cancelled": "m.member.si('x').set(task_id='cancelled-member')",
    "revoked": "m.member.si('x').set(task_id='revoked-member')",
    "payload-lost": "m.member.si('x' * 30_000, 'its claim is gone')",
}


@pytest.fixture
def shop(vhost: Vhost, tmp_path: Path, store_servers: Servers) -> Iterator[Bench]:
    """The misbehaving app with Redis as its result backend; bodies of over 20,000 bytes travel as claims."""
    settings = {"UNLOST_CLAIM_STORE": f"file://{tmp_path}/claims", "UNLOST_CLAIM_ABOVE": "20000"}
    settings |= {"UNLOST_LEASE": "4", "UNLOST_PARK": "0.5"}
    with (
        store_servers("redis").fresh() as url,
        bench(vhost, tmp_path, CELERY_RESULT_BACKEND=url, **settings) as made,
    ):
        made.module = "tests.support.with_results"
        yield made


def test_a_chord_is_told_of_every_end_of_its_members(shop: Bench, tmp_path: Path) -> None:
    """A chord with a member that ends in any way but well fails; one of good members goes on."""
    made = "\n".join(
        # Later than a member of which only the headers can be read: that one does not know the chord.
        f"chord([m.member.si('a').set(countdown={2 * (name == 'undecodable')}), {member}])("
        f"m.gathers.s({name!r}).set(task_id='body-{name}').on_error(m.errback.s()))"
        for name, member in {"well": "m.member.si('b')", **ENDINGS}.items()
    )
    shop.call("m.member.cancel('cancelled-member'); m.app.control.revoke('revoked-member')")
    shop.call(f"from celery import chord\nfrom datetime import UTC, datetime\n{made}")
    shop.tear("torn-member")
    shutil.rmtree(tmp_path / "claims")
    shop.start()
    told = {f"errback-body-{name}" for name in ENDINGS}
    shop.wait_for(lambda: "well-a+b" in shop.runs(), "the chord whose members end well goes on")
    shop.wait_for(lambda: told <= set(shop.runs()), "the others are told")
    assert {label for label in shop.runs() if label.startswith("errback-")} == told


def test_those_who_wait_for_what_is_no_task_here_are_told(shop: Bench) -> None:
    """The result of a message that no worker can read or run ends as a failure, with the letter's reason."""
    shop.start()
    publish(shop, "t.member", "x", id="broken", timelimit=["a", "b"])
    publish(shop, "t.ghost", "x", id="ghost")
    shop.wait_for(lambda: len(shop.letters()) == 2, "both are letters")
    asked = (
        "import json\nfrom celery.result import AsyncResult\n"
        "def why(id):\n"
        "    try: AsyncResult(id, app=m.app).get(timeout=20)\n"
        "    except Exception as exc: return str(exc)\n"
        "print(json.dumps([why('broken'), why('ghost')]))"
    )
    broken, ghost = json.loads(shop.call(asked))
    assert broken.startswith("malformed: ")
    assert ghost.startswith("unknown-task: ")
