"""The delay path itself: how punctual it is under load, and that it outlives a node."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from datetime import timedelta
from pathlib import Path

import amqp
import pytest

from tests.support.apps import WORK, close, declare, reliable_app, shop
from tests.support.brokers import require
from tests.support.raw_amqp import open_channel
from unlost.core.clock import from_epoch_ms
from unlost.core.message import Outgoing
from unlost.core.outcome import Outcome
from unlost.tasks.amqp import route
from unlost.tasks.runtime import runtime_of
from unlost.testing.brokers import Vhost, docker_cluster
from unlost.topology.model import Topology

pytestmark = [pytest.mark.system, pytest.mark.long]

MESSAGES, A_SECOND = 5000, 500
AHEAD = timedelta(seconds=20)


def test_five_hundred_due_a_second_come_off_the_path_within_a_second(vhost: Vhost, tmp_path: Path) -> None:
    """Of five thousand messages with delays of up to 30 s none is early, and 99 of 100 less than 1 s late.

    Counted from the due time in the message, which is when the path lets go of it but for the time of
    its publish, to its arrival at a consumer that does nothing else.
    """
    topology = shop(levels=6)
    declare(vhost, topology)
    app = reliable_app(vhost, tmp_path, topology)
    late: list[float] = []
    consumer = threading.Thread(target=consume, args=(vhost, late))
    consumer.start()
    begin = time.time() + AHEAD.total_seconds()
    order = list(range(MESSAGES))
    random.Random(1).shuffle(order)
    messages = (delayed(topology, begin + number / A_SECOND) for number in order)
    published = runtime_of(app).publisher.publish_many(messages, window=500)
    assert all(each.outcome is Outcome.OK for each in published)
    assert time.time() < begin, "they were published too late to be due together"
    consumer.join(timeout=120)
    close(app)
    late.sort()
    p50, p99 = late[len(late) // 2], late[len(late) * 99 // 100]
    print(f"{len(late)} at {A_SECOND} due a second: p50 {p50:.3f} s, p99 {p99:.3f} s, most {late[-1]:.3f} s")
    assert len(late) == MESSAGES
    assert late[0] > -0.002
    assert p99 < 1


def test_delays_outlive_the_loss_of_a_node(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """Of three nodes one dies for good while messages wait on it: all arrive, none early."""
    require("docker", pytestconfig)
    topology = shop(levels=6)
    with docker_cluster(environ=os.environ) as cluster, cluster.fresh_vhost() as vhost:
        declare(vhost, topology)
        app = reliable_app(vhost, tmp_path, topology)
        due = [time.time() + 20 + number / 10 for number in range(100)]
        messages = (delayed(topology, each) for each in due)
        published = runtime_of(app).publisher.publish_many(messages)
        assert all(each.outcome is Outcome.OK for each in published)
        close(app)
        cluster.nodes[2].kill()
        late: list[float] = []
        consume(vhost, late, len(due))
        assert len(late) == len(due)
        assert min(late) > -0.002


def delayed(topology: Topology, due: float) -> Outgoing:
    """Return a message that is due then; its wait is of whole seconds but for what its publish takes."""
    # What remains is rounded up on the path: due a little before a whole second from now.
    now = time.time()
    due = now + round(due - now)
    exchange, key = route(topology, WORK, from_epoch_ms(int(due * 1000)))
    return Outgoing(
        exchange=exchange, routing_key=key, body=json.dumps(due), headers={}, properties={"delivery_mode": 2}
    )


def consume(vhost: Vhost, late: list[float], messages: int = MESSAGES) -> None:
    """Note how late each message arrives."""

    def arrived(message: amqp.Message) -> None:
        late.append(time.time() - json.loads(message.body))
        if len(late) % 100 == 0 or len(late) == messages:
            channel.basic_ack(message.delivery_tag, multiple=True)

    with open_channel(vhost.amqp_url) as channel:
        channel.basic_qos(0, 1000, False)
        channel.basic_consume(WORK, callback=arrived)
        deadline = time.monotonic() + 100
        while len(late) < messages and time.monotonic() < deadline:
            channel.connection.drain_events(timeout=60)
