"""The store is killed and comes back: what waits for it, what runs on without, and how soon all is well."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.stores import require
from tests.support.workers import Bench, bench
from unlost.testing.brokers import Vhost
from unlost.testing.stores import StoreServer, start_store
from unlost.testing.waiting import wait_until

pytestmark = pytest.mark.one_broker

RECOVERY = timedelta(seconds=10)
JSON = {"content_type": "application/json", "content_encoding": "utf-8"}


class Shop:
    """A worker whose store can be killed."""

    def __init__(self, made: Bench, server: StoreServer) -> None:
        self.bench = made
        self.server = server

    def publish(self, task: str, label: str) -> None:
        """Publish as a client that has nothing to do with the store."""
        headers = {"lang": "py", "task": task, "id": uuid.uuid4().hex, "retries": 0}
        self.bench.publish_raw(json.dumps([[label], {}, {}]), headers, **JSON)

    def traces(self) -> Counter[str]:
        """Return which bodies ran how often."""
        path = self.bench.folder / "traces"
        return Counter(path.read_text().splitlines() if path.exists() else [])

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something that traces, letters or the log show."""
        wait_until(condition, timedelta(seconds=60), what, why_not=lambda: self.bench.log()[-3000:])


@pytest.fixture(params=["postgresql", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    """Return a kind of store whose server can be killed."""
    require(request.param, request.config)
    return str(request.param)


@pytest.fixture
def shop(kind: str, vhost: Vhost, tmp_path: Path) -> Iterator[Shop]:
    """A worker that has begun to consume, with a store of its own."""
    with ExitStack() as stack:
        server = stack.enter_context(start_store(kind, os.environ))
        url = stack.enter_context(server.fresh())
        settings = {"UNLOST_STORE": url, "UNLOST_LEASE": "4", "TRACES": str(tmp_path / "traces")}
        made = stack.enter_context(bench(vhost, tmp_path, **settings))
        made.module = "tests.support.storeless"
        made.start()
        yield Shop(made, server)


def test_while_the_store_is_down_only_open_tasks_run(shop: Shop) -> None:
    """Closed ones wait and run once when it is back, soon; open ones end as ever, and none runs twice."""
    shop.publish("s.closed", "before")
    shop.wait_for(lambda: shop.traces()["before"] == 1, "a task ran while the store was up")
    shop.server.kill()

    shop.publish("s.opened", "opened")
    shop.wait_for(lambda: shop.traces()["opened"] == 1, "the open task ran")
    shop.publish("s.fails", "fails")
    shop.wait_for(shop.bench.letters, "the letter is there")
    assert shop.traces()["fails"] == 2
    if shop.server.kind == "postgresql":
        shop.publish("s.works", "works")
    for number in range(4):
        shop.publish("s.closed", f"closed-{number}")
    held = "Retrying unlost.tasks.tracer._acquire"
    shop.wait_for(lambda: shop.bench.log().count(held) > 4, "deliveries are held")
    assert not any(label.startswith(("closed", "works")) for label in shop.traces())

    total = 1 + 1 + 2 + 4 + (shop.server.kind == "postgresql")
    shop.server.start()
    back = time.monotonic()
    shop.wait_for(lambda: sum(shop.traces().values()) == total, "all ran")
    assert time.monotonic() - back < RECOVERY.total_seconds()
    assert max(shop.traces().values()) == 2  # the one that failed twice
    [(headers, _)] = shop.bench.letters()
    assert headers["x-unlost-death-reason"] == "budget-spent"
