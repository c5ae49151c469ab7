"""``unlost doctor``: the app, its broker and store, and what waits in a live queue."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_delays import limit
from tests.integration.test_worker_edges import publish
from tests.support.workers import ROOT, SOON, Bench, bench
from unlost.broker.management import Management
from unlost.testing.brokers import Vhost
from unlost.testing.waiting import wait_until
from unlost.topology import naming

pytestmark = pytest.mark.one_broker


@pytest.fixture
def shop(vhost: Vhost, tmp_path: Path) -> Iterator[Bench]:
    """The misbehaving app on a fresh vhost."""
    with bench(vhost, tmp_path) as made:
        yield made


def doctor(shop: Bench, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run the command; return its status and its looks by name."""
    command = "from unlost.cli import main; main()"
    given = ["doctor", "--app", f"{shop.module}:app", "--json", "--management", shop.vhost.management_url]
    done = subprocess.run(
        [sys.executable, "-c", command, *given, *arguments],
        env=shop.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, {each["what"]: each for each in json.loads(done.stdout)["looks"]}


def waiting(shop: Bench) -> int:
    """Return how many messages wait in the work queue."""
    with shop.channel() as channel:
        return int(channel.queue_declare("t.work", passive=True).message_count)


def test_a_build_that_fits_is_told_so(shop: Bench) -> None:
    """Broker, store, topology and what waits are fine: status 0, and every message is still there."""
    shop.call("m.effect.delay('a'); m.parcel.delay(number=1)")
    status, looks = doctor(shop, "--against", "t.work")
    wrong = {what: look["says"] for what, look in looks.items() if look["verdict"] in ("found", "unknown")}
    assert (status, wrong) == (0, {})
    assert looks["messages in t.work"]["says"] == "this build can handle all 2 that were looked at"
    assert {"configuration", "broker", "store"} <= looks.keys()
    shop.wait_for(lambda: waiting(shop) == 2, "both are back")


def test_what_a_build_cannot_handle_is_named_and_left(shop: Bench) -> None:
    """Unknown tasks, payloads that do not fit and newer versions are counted; no value of theirs is shown."""
    publish(shop, "t.ghost", "x")
    publish(shop, "t.ghost", "y")
    publish(shop, "t.effect", "x", "more", "than it takes")
    publish(shop, "t.parcel", {"number": "secret"})
    publish(shop, "t.effect", "x", **{"x-unlost-v": 99})
    publish(shop, "t.effect", "x", timelimit=["a", "b"])
    publish(shop, "t.effect", "fits")
    status, looks = doctor(shop, "--against", "t.work")
    found = looks["messages in t.work"]
    assert (status, found["verdict"]) == (1, "found")
    assert "2 of t.ghost: unknown-task" in found["says"]
    assert "1 of t.effect: invalid-payload (too many positional arguments)" in found["says"]
    assert "1 of t.parcel: invalid-payload (number: " in found["says"]
    assert "1 of t.effect: newer-version" in found["says"]
    assert "1 of t.effect: malformed" in found["says"]
    assert "secret" not in found["says"]
    shop.wait_for(lambda: waiting(shop) == 7, "all are back")


def test_a_topology_that_is_not_in_effect_is_found(shop: Bench) -> None:
    """Doctor verifies the app's own topology."""
    with shop.channel() as channel:
        channel.queue_delete("t.work.dlq")
    status, looks = doctor(shop)
    assert status == 1
    assert looks["queue members"]["verdict"] == "found"


def test_a_queue_that_is_not_there_cannot_be_told(shop: Bench) -> None:
    """A mistyped queue is no clean bill of health."""
    status, looks = doctor(shop, "--against", "t.wrok")
    assert status == 3
    assert "t.wrok" in looks["messages in t.wrok"]["says"]


#: Fills the work queue until it refuses.
FILL = """
import unlost.errors
try:
    while True:
        m.effect.delay('fills it')
except unlost.errors.Refused:
    pass
"""


def test_a_delay_that_is_over_and_does_not_end_is_found(vhost: Vhost, tmp_path: Path) -> None:
    """A message whose queue is full when its delay ends stays in its level, and is counted there."""
    level = naming.delay_level("t", 0)
    with (
        bench(vhost, tmp_path, UNLOST_PUBLISH_PATIENCE="1") as shop,
        Management(vhost.management_url, vhost.name) as management,
    ):
        limit(management, "t.work")
        shop.call(f"{FILL}\nm.effect.apply_async(('late',), countdown=1)")
        wait_until(lambda: management.pending_letters(level) == 1, SOON, "its delay is over")
        status, looks = doctor(shop)
    assert status == 1
    assert looks["delays and dead letters"]["verdict"] == "found"
    assert f"1 messages in '{level}'" in looks["delays and dead letters"]["says"]
