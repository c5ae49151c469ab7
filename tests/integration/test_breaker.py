"""A dependency that fails pauses its queue: messages wait in the broker and keep their attempts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.gates import Gated, gated
from tests.support.stores import Servers, fresh_url
from unlost.testing.brokers import Vhost

pytestmark = pytest.mark.one_broker

#: Failures before the breaker opens, and what two workers of two processes have in hand then.
BEFORE = 4 + 4


@pytest.fixture
def bank(
    request: pytest.FixtureRequest, vhost: Vhost, tmp_path: Path, store_servers: Servers
) -> Iterator[Gated]:
    """The gated app on a fresh vhost, with a store of the kind that the test says, or SQLite."""
    with ExitStack() as stack:
        url = fresh_url(getattr(request, "param", "sqlite"), store_servers, tmp_path, stack)
        yield stack.enter_context(gated(vhost, tmp_path, UNLOST_STORE=url))


in_every_kind_of_store = pytest.mark.parametrize("bank", ["sqlite", "redis"], indirect=True)


def cli(bank: Gated, *arguments: str) -> str:
    """Run ``unlost breaker`` on the bench's store."""
    command = [str(Path(sys.executable).with_name("unlost")), "breaker", *arguments]
    done = subprocess.run(command, env=bank.environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


@in_every_kind_of_store
def test_an_outage_burns_only_the_probes_attempts(bank: Gated) -> None:
    """While the bank is down each probe burns one attempt; when it is back all payments are made."""
    bank.start()
    bank.start()
    bank.take_down()
    bank.call("for n in range(100): m.pay.delay(n)")
    bank.wait_for(lambda: bank.failures() >= BEFORE + 2, "it was probed more than once")
    listed = cli(bank, "list")
    assert "open" in listed or "probing" in listed
    probes = bank.log(0).count("probes") + bank.log(1).count("probes")
    assert bank.failures() <= BEFORE + probes + 1
    assert bank.depth("g.bank") >= 100 - BEFORE - 2 * (probes + 1)
    bank.bring_back()
    bank.wait_for(lambda: bank.paid() == set(range(100)), "all are paid")
    assert bank.letters("g.bank.dlq") == []
    assert "closed" in cli(bank, "list")


def test_without_the_breaker_the_outage_burns_every_budget(vhost: Vhost, tmp_path: Path) -> None:
    """The control: the same outage ends every message as a letter."""
    with gated(vhost, tmp_path, TEST_WITHOUT="breaker") as bank:
        bank.start()
        bank.take_down()
        bank.call("for n in range(20): m.pay.delay(n)")
        bank.wait_for(lambda: len(bank.letters("g.bank.dlq")) == 20, "all are dead")
        assert bank.failures() == 60


@in_every_kind_of_store
def test_an_operator_stops_a_queue_and_lets_it_go_on(bank: Gated) -> None:
    """A held breaker consumes nothing; released, one message is tried and then all."""
    bank.start()
    assert "would be held" in cli(bank, "hold", "bank")
    cli(bank, "hold", "bank", "--reason", "maintenance", "--yes")
    bank.wait_for(lambda: "pauses: maintenance" in bank.log(), "the worker has paused")
    bank.call("for n in range(5): m.pay.delay(n)")
    remote = [sys.executable, "-m", "celery", "-A", "tests.support.gated", "--no-color", "inspect"]
    said = subprocess.run(
        [*remote, "unlost_breakers", "--json"],
        env=bank.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "maintenance" in said.stdout
    assert bank.depth("g.bank") == 5
    cli(bank, "release", "bank", "--yes")
    bank.wait_for(lambda: bank.paid() == set(range(5)), "all are paid")


def test_what_comes_as_a_queue_flows_again_is_run_at_once(vhost: Vhost, tmp_path: Path) -> None:
    """Deliveries that are read along with the broker's answer are not left until something else comes."""
    with gated(vhost, tmp_path, TEST_READS="late") as bank:
        # A heartbeat would be such a thing, or a look at a limited queue.
        bank.start("--queues=g.bank", "--", "broker.heartbeat=0")
        cli(bank, "hold", "bank", "--yes")
        bank.wait_for(lambda: "pauses" in bank.log(), "the worker has paused")
        bank.call("for n in range(5): m.pay.delay(n)")
        cli(bank, "release", "bank", "--yes")
        bank.wait_for(lambda: bank.paid() == set(range(5)), "all are paid")


def test_a_message_that_came_to_another_queue_is_moved_behind_its_breaker(bank: Gated) -> None:
    """A held breaker holds it there too; nothing of it is run."""
    bank.start()
    cli(bank, "hold", "bank", "--yes")
    bank.wait_for(lambda: "pauses" in bank.log(), "the worker has paused")
    bank.call("m.pay.apply_async((1,), queue='g.other')")
    bank.wait_for(lambda: bank.depth("g.bank") == 1, "it is in its own queue")
    assert bank.traces("pay") == []
    cli(bank, "release", "bank", "--yes")
    bank.wait_for(lambda: bank.paid() == {1}, "it is paid")
