"""A worker over TLS: what it has read ahead, and what OpenSSL has decrypted ahead, is not left lying."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import amqp
import pytest

from tests.support.brokers import require
from tests.support.configured import TlsNode, tls_node
from tests.support.workers import ROOT, SOON, Bench
from unlost.errors import HarnessError
from unlost.testing.brokers import Vhost
from unlost.testing.waiting import wait_until

BURST = 300
#: On a busy machine a burst may come in pieces, and nothing of it be left.
BURSTS = 5
#: Some of the bodies are longer than a TLS record, and than what is read ahead.
LONG = frozenset(range(0, BURST, 50))
ALL = Counter(str(number) for number in range(BURST))
#: The whole burst is sent at once: no ack brings another delivery, which would make the socket readable.
AT_ONCE = ("--concurrency=2", f"--prefetch-multiplier={BURST}", "--without-heartbeat")


@pytest.fixture(scope="module")
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsNode]:
    """A node that speaks TLS only."""
    require("docker", request.config)
    with tls_node(tmp_path_factory.mktemp("tls") / "ca") as started:
        yield started


def publish(node: TlsNode, which: int) -> None:
    """Publish a burst, so fast and with so few headers that several deliveries come in one TLS record."""
    with node.connect() as connection:
        channel = connection.channel()
        for number in range(BURST):
            body = json.dumps([[str(number), "x" * 40_000 * (number in LONG)], {}, {}])
            headers = {"lang": "py", "task": "e.effect", "id": f"{which}-{number}"}
            message = amqp.Message(
                body, application_headers=headers, content_type="application/json", content_encoding="utf-8"
            )
            channel.basic_publish(message, "", "shop.payments")
        # Answered behind all of them.
        channel.queue_declare("shop.payments", passive=True)


@pytest.fixture
def shop(node: TlsNode, tmp_path: Path) -> Iterator[Bench]:
    """An app that has the node's certificates."""
    url = f"amqp://unlost:{node.password}@localhost:{node.amqp_port}//"
    settings = {"TEST_TLS": str(node.folder), "TEST_TOPOLOGY": str(ROOT / "topology")}
    made = Bench(Vhost("/", url, ""), tmp_path, settings, "tests.support.encrypted")
    try:
        yield made
    finally:
        made.stop()


def burst(shop: Bench, node: TlsNode, which: int = 1) -> None:
    """Have a worker that stands still find all of a burst in its socket when it goes on."""
    worker = shop.start(*AT_ONCE)
    os.kill(worker.pid, signal.SIGSTOP)
    publish(node, which)
    os.kill(worker.pid, signal.SIGCONT)


def test_a_burst_is_worked_off_to_its_last_message(shop: Bench, node: TlsNode) -> None:
    """Every message of it has its effect, though nothing else comes in that could loosen what is stuck."""
    burst(shop, node)
    wait_until(lambda: shop.effects() == ALL, SOON, "all are done", why_not=lambda: shop.log()[-3000:])


def test_a_reader_that_leaves_off_strands_what_was_read(shop: Bench, node: TlsNode) -> None:
    """The control: one read for each time that the socket is readable leaves some of the burst lying."""
    shop.settings = {**shop.settings, "TEST_READS": "once"}
    for which in range(1, BURSTS + 1):
        burst(shop, node, which)
        if not has_all(shop, which):
            break
        shop.stop()
    else:
        pytest.fail(f"nothing of {BURSTS} bursts was left lying")
    # A reader as it should be takes what was left; so the node is empty again, too.
    shop.stop()
    del shop.settings["TEST_READS"]
    shop.start(*AT_ONCE)
    wait_until(
        lambda: shop.effects() == times(which), SOON, "all are done", why_not=lambda: shop.log()[-3000:]
    )


def times(bursts: int) -> Counter[str]:
    """Return the effects of so many bursts."""
    return Counter(dict.fromkeys(ALL, bursts))


def has_all(shop: Bench, bursts: int) -> bool:
    """Return whether so many bursts have all their effects before long."""
    try:
        wait_until(lambda: shop.effects() == times(bursts), timedelta(seconds=20), "all are done")
    except HarnessError:
        return False
    return True
