"""Tasks that are published compressed: their copies stay so."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.workers import Bench, bench
from unlost.testing.brokers import Vhost

pytestmark = pytest.mark.one_broker


@pytest.fixture
def shop(vhost: Vhost, tmp_path: Path) -> Iterator[Bench]:
    """The misbehaving app on a fresh vhost."""
    with bench(vhost, tmp_path, UNLOST_LEASE="4") as made:
        yield made


def test_a_compressed_task_is_retried_and_its_letter_can_be_sent_back(shop: Bench) -> None:
    """The retry runs, and the letter holds the compressed body that its header tells of."""
    shop.start()
    shop.call(
        "m.recovers.apply_async(('r',), compression='gzip')\nm.fails.apply_async(('f',), compression='gzip')"
    )
    shop.wait_for(lambda: shop.states() == {"done": 1, "dead": 1} and shop.letters(), "both have ended")
    assert (shop.runs()["r"], shop.runs()["f"]) == (2, 2)
    [(headers, body)] = shop.letters()
    assert headers["x-unlost-death-reason"] == "budget-spent"
    assert json.loads(zlib.decompress(body))[0] == ["f"]
    shop.publish_raw(body, headers, content_type="application/json", content_encoding="utf-8")
    shop.wait_for(lambda: shop.runs()["f"] == 4, "what was sent back ran")
