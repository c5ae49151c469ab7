"""``unlost outbox`` as an operator uses it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.outboxes import columns, message, opened_outbox
from tests.support.publishing import PATIENCE, declare_queue, drained, ids
from unlost.outbox.store import OutboxStore
from unlost.outbox.writer import write
from unlost.testing.brokers import Vhost
from unlost.testing.waiting import wait_until

pytestmark = pytest.mark.one_broker

UNLOST = str(Path(sys.executable).parent / "unlost")


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Return the URL of an SQLite file."""
    return f"sqlite:///{tmp_path}/outbox.sqlite"


def run(url: str, *arguments: str, status: int = 0) -> Any:
    """Run a command with --json, and return what it printed."""
    done = subprocess.run(
        [UNLOST, "outbox", arguments[0], "--store", url, "--json", *arguments[1:]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


def put(store: OutboxStore, number: int, queue: str = "work") -> None:
    """Commit a message for a queue."""
    with store.engine.begin() as connection:
        write(connection, [message(number).to("", queue)])


def test_init_is_a_dry_run_without_yes(url: str) -> None:
    """It says what it would do and exits with 1; with --yes it does it; then there is nothing to do."""
    assert run(url, "init", status=1) == {"applied": False, "versions": [1]}
    assert run(url, "init", "--yes") == {"applied": True, "versions": [1]}
    assert run(url, "init") == {"applied": False, "versions": []}


def test_a_message_is_relayed_parked_and_retried(vhost: Vhost, url: str) -> None:
    """relay --once publishes what it can; what no queue is bound for is shown, parked, and sent again."""
    declare_queue(vhost, "work")
    with opened_outbox(url) as store:
        put(store, 1)
        put(store, 2, "missing")
        broker = ("--broker", vhost.amqp_url)
        assert run(url, "relay", "--once", *broker, status=1)["delivered"] == 1
        (trouble,) = run(url, "status")["troubled"]
        assert trouble["message_id"] == "m2.0.1"
        assert trouble["reason"].startswith("Unroutable")
        _park(store)
        assert run(url, "status", status=1)["parked"] == 1
        assert run(url, "retry", "--all", status=1)["retried"] == 0
        assert run(url, "retry", "--all", "--yes")["retried"] == 1
        declare_queue(vhost, "missing")
        assert run(url, "relay", "--once", *broker)["delivered"] == 1
        assert columns(store, "state") == [("delivered",), ("delivered",)]
    assert ids(drained(vhost, "work") + drained(vhost, "missing")) == ["m1.0.1", "m2.0.1"]


def _park(store: OutboxStore) -> None:
    from sqlalchemy import update

    from unlost.outbox.schema import outbox

    with store.engine.begin() as connection:
        connection.execute(update(outbox).where(outbox.c.state == "pending").values(state="parked"))


def test_a_relay_ends_gracefully_on_sigterm(vhost: Vhost, url: str) -> None:
    """It relays until then, leaves nothing leased, and says what it has done."""
    declare_queue(vhost, "work")
    with opened_outbox(url) as store:
        command = [UNLOST, "outbox", "relay", "--store", url, "--broker", vhost.amqp_url, "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as relay:
            for number in range(3):
                put(store, number)
            wait_until(lambda: store.status().delivered == 3, PATIENCE, "all is delivered")
            relay.send_signal(signal.SIGTERM)
            out, _ = relay.communicate(timeout=PATIENCE.total_seconds())
        assert relay.returncode == 0
        assert json.loads(out)["delivered"] == 3
        assert store.status().leased == 0


@pytest.mark.parametrize("command", ["status", "relay"])
def test_a_database_that_does_not_answer_is_exit_status_3(command: str) -> None:
    """Nobody can tell what is in an outbox that cannot be read; the password is not shown."""
    done = subprocess.run(
        [UNLOST, "outbox", command, "--store", "postgresql+psycopg://shop:s3cret@127.0.0.1:1/shop"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "UNLOST_BROKER_URL": "amqp://guest@127.0.0.1:1//"},
    )
    assert done.returncode == 3
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr
