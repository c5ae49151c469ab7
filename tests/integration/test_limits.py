"""Limits hold for all workers together, and what is beyond them stays in the broker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.gates import Gated, gated
from tests.support.stores import Servers, fresh_url
from unlost.testing.brokers import Broker, Vhost

pytestmark = pytest.mark.one_broker


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def office(
    request: pytest.FixtureRequest,
    broker: Broker,
    tmp_path_factory: pytest.TempPathFactory,
    store_servers: Servers,
) -> Iterator[Gated]:
    """The gated app on a fresh vhost, with two workers of two processes, and each kind of store."""
    folder = tmp_path_factory.mktemp("office")
    with ExitStack() as stack:
        vhost = stack.enter_context(broker.fresh_vhost())
        url = fresh_url(request.param, store_servers, folder, stack)
        made = stack.enter_context(gated(vhost, folder, UNLOST_STORE=url))
        made.start(wait=False)
        made.start()
        yield made


def most_at_once(office: Gated) -> int:
    """Return how many bodies ran at the same moment, at most."""
    ends = [(line["at_ms"], 1) for line in office.traces("begin")]
    ends += [(line["at_ms"], -1) for line in office.traces("end")]
    running = most = 0
    for _, step in sorted(ends):
        running += step
        most = max(most, running)
    return most


def test_one_at_a_time_in_all_workers_and_the_others_wait_in_the_broker(office: Gated) -> None:
    """Of twenty messages never two run at once, and no worker takes what it has no permit for."""
    office.call("for n in range(20): m.prints.delay(n)")
    while len(office.traces("end")) < 20:
        ready = office.depth("g.printer")
        assert 20 - ready <= len(office.traces("begin")) + 1
        office.wait_for(lambda: True, "")
    assert most_at_once(office) == 1
    assert sorted(line["number"] for line in office.traces("end")) == list(range(20))


def test_a_rate_holds_over_all_workers(office: Gated) -> None:
    """Thirty messages at ten a second, one at once: the last starts 2.9 s after the first permit or later."""
    begun = time.time()
    office.call("for n in range(30): m.texts.delay(n)")
    office.wait_for(lambda: len(office.traces("text")) == 30, "all are sent")
    assert office.traces("text")[-1]["at_ms"] / 1000 - begun >= 2.9


def test_without_the_limit_they_run_at_once(vhost: Vhost, tmp_path: Path) -> None:
    """The control: the same messages overlap."""
    with gated(vhost, tmp_path, TEST_WITHOUT="limit") as office:
        office.start()
        office.call("for n in range(20): m.prints.delay(n)")
        office.wait_for(lambda: len(office.traces("end")) == 20, "all are printed")
        assert most_at_once(office) > 1


def test_the_slots_of_a_worker_that_was_killed_come_back(vhost: Vhost, tmp_path: Path) -> None:
    """Its word of what it runs is believed for a lease; then the others go on."""
    with gated(vhost, tmp_path, UNLOST_LEASE="3") as office:
        first = office.start()
        office.call("for n in range(10): m.prints.delay(n)")
        office.wait_for(lambda: office.traces("begin"), "one is being printed")
        first.kill()
        first.wait()
        office.start()
        office.wait_for(
            lambda: {line["number"] for line in office.traces("end")} == set(range(10)), "all are printed"
        )
