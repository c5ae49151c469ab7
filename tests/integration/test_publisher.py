"""The confirming publisher on live brokers: what it returns for, and what each of its errors proves."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from tests.support.publishing import (
    BRIEFLY,
    PATIENCE,
    QUEUE,
    declare_queue,
    drained,
    elapsed,
    ids,
    message,
    publisher,
    wait_for_leader,
    with_password,
)
from tests.support.raw_amqp import open_channel
from unlost import errors
from unlost.broker.errors import BrokerUnavailable, ConfirmUnknown
from unlost.broker.management import Management
from unlost.broker.publisher import Publisher
from unlost.core.message import Outgoing
from unlost.testing.brokers import Broker, Vhost
from unlost.testing.brokers.alarms import memory_alarm
from unlost.testing.brokers.endpoint import parse_endpoint
from unlost.testing.proxy import MuteProxy, Proxy
from unlost.testing.waiting import wait_until

THREADS = 4
MESSAGES = 300


@pytest.fixture
def queue(vhost: Vhost) -> str:
    """Declare the queue that messages of these tests go to."""
    declare_queue(vhost)
    return QUEUE


def close_connections(vhost: Vhost, publishing: Publisher) -> None:
    """Have the broker close all connections of a publisher, and wait until each has heard of it."""
    sockets = [link._connection.sock for link in publishing._pool._idle]
    with Management(vhost.management_url, vhost.name) as management:

        def names() -> list[str]:
            found = management._json("GET", management._path("vhosts") + "/connections")
            return [each["name"] for each in found if each.get("name")]

        # They are listed some seconds after they opened.
        wait_until(lambda: len(names()) == len(sockets), PATIENCE, "all are listed", why_not=names)
        for name in names():
            management._request("DELETE", f"connections/{name}")
    wait_until(lambda: len(select.select(sockets, [], [], 0)[0]) == len(sockets), PATIENCE, "all are closed")


def test_a_publish_that_returned_is_in_its_queue(vhost: Vhost, queue: str) -> None:
    """A confirmed message is in its queue with its message id, persistent, headers and body as sent."""
    sent = message(body="hello", headers={"task": "t", "n": 1}, priority=0)
    with publisher(vhost.amqp_url) as publishing:
        publishing.publish(sent)
    (found,) = drained(vhost)
    assert found.body == "hello"
    assert found.properties["message_id"] == sent.message_id
    assert found.properties["delivery_mode"] == 2
    assert found.properties["priority"] == 0
    # RabbitMQ before 4.0 adds a count of deliveries.
    assert found.headers.items() >= {"task": "t", "n": 1}.items()


@pytest.mark.parametrize("size", [0, 1, 131_064, 1_000_000])
def test_bodies_of_every_size_arrive_whole(vhost: Vhost, queue: str, size: int) -> None:
    """A body is the same on the other side, empty, in one frame, or in many."""
    with publisher(vhost.amqp_url) as publishing:
        publishing.publish(message(body="y" * size))
        publishing.publish(message(body="z" * size))
    assert [found.body for found in drained(vhost)] == ["y" * size, "z" * size]


@pytest.mark.parametrize(("exchange", "key"), [("", "no-such-queue"), ("no-such-exchange", QUEUE)])
def test_an_unroutable_message_is_named_and_only_it(
    vhost: Vhost, queue: str, exchange: str, key: str
) -> None:
    """A message without a queue or an exchange is Unroutable; the next on that publisher is not blamed."""
    lost, good = message(key, exchange=exchange), message()
    with publisher(vhost.amqp_url) as publishing:
        publishing.publish(message())
        with pytest.raises(errors.Unroutable, match=lost.message_id) as caught:
            publishing.publish(lost)
        publishing.publish(good)
    assert isinstance(caught.value, OperationalError)
    assert good.message_id in ids(drained(vhost))


#: Stands for a body that is one byte longer than the broker takes.
TOO_LARGE = "too large"


def largest_body(vhost: Vhost) -> int:
    """Return how many bytes the broker takes by default: 16 MiB from 4.0 on, 128 MiB before."""
    with Management(vhost.management_url, vhost.name) as management:
        return (16 if management.version() >= (4, 0) else 128) * 1024 * 1024


@pytest.mark.parametrize(
    "impossible",
    [
        {"headers": {"big": "x" * 200_000}},
        {"body": TOO_LARGE},
        {"headers": {"object": object()}},
        {"headers": {"number": 1 << 70}},
        {"message_id": "x" * 300},
        {"priority": 300},
        {"user_id": "somebody-else"},
    ],
    ids=["headers over frame_max", "body", "header type", "long integer", "long id", "priority", "user id"],
)
def test_a_message_that_amqp_cannot_carry_is_refused_at_once(
    vhost: Vhost, queue: str, impossible: dict[str, Any]
) -> None:
    """What can never be stored is refused without a second try, without doubt, and shows no payload."""
    if impossible.get("body") == TOO_LARGE:
        impossible = {"body": b"x" * (largest_body(vhost) + 1)}
    began = time.monotonic()
    with publisher(vhost.amqp_url) as publishing:
        with pytest.raises(errors.Refused) as caught:
            publishing.publish(message(**impossible))
        publishing.publish(message(body="next"))
    assert elapsed(began) < 10
    assert isinstance(caught.value, OperationalError)
    assert "object at" not in str(caught.value)
    assert [found.body for found in drained(vhost)] == ["next"]


@dataclass
class WrongUrl:
    """A URL that does not lead to the queue, and what its error shall be and say."""

    of: Callable[[Vhost], str]
    error: type[errors.BrokerError]
    says: tuple[str, ...]


SECRET = "s3kret"

WRONG = {
    "password": WrongUrl(
        lambda vhost: with_password(vhost.amqp_url, SECRET), errors.AccessRefused, ("user", "password in the")
    ),
    "vhost": WrongUrl(
        lambda vhost: f"{vhost.amqp_url}-not", errors.AccessRefused, ("-not'", "Create the vhost")
    ),
    "port": WrongUrl(
        lambda _: f"amqp://u:{SECRET}@127.0.0.1:1//",
        errors.BrokerUnavailable,
        ("127.0.0.1:1", "Check that RabbitMQ"),
    ),
    "name": WrongUrl(
        lambda _: f"amqp://u:{SECRET}@no-such-host.invalid//",
        errors.BrokerUnavailable,
        ("no-such-host.invalid:5672",),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_url_is_said_clearly_and_in_time(vhost: Vhost, case: str) -> None:
    """Wrong password, vhost, port and host fail within 10 s, with the place, the reason and a way out."""
    wrong = WRONG[case]
    url = wrong.of(vhost)
    password = parse_endpoint(url, "url", ("amqp",)).password
    began = time.monotonic()
    with publisher(url) as publishing, pytest.raises(wrong.error) as caught:
        publishing.publish(message())
    assert elapsed(began) < 10
    assert isinstance(caught.value, OperationalError)
    for words in (parse_endpoint(url, "url", ("amqp",)).host, *wrong.says):
        assert words in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(publishing)
    assert password not in shown


def test_a_broker_that_says_nothing_is_unavailable_in_time() -> None:
    """A peer that accepts the connection and never answers is BrokerUnavailable within 10 s."""
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        with (
            publisher(f"amqp://u:{SECRET}@{place}//") as publishing,
            pytest.raises(errors.BrokerUnavailable, match=place),
        ):
            publishing.publish(message())
    assert elapsed(began) < 10


def test_the_second_host_is_tried_when_the_first_is_down(vhost: Vhost, queue: str) -> None:
    """Of several hosts in the URL the next is used when one does not answer."""
    sent = message()
    with publisher(f"amqp://u:p@127.0.0.1:1//;{vhost.amqp_url}") as publishing:
        publishing.publish(sent)
    assert ids(drained(vhost)) == [sent.message_id]


class CutOffNode(Proxy):
    """A node that is cut off from its cluster: it lets clients in, answers them, and confirms nothing."""

    #: The start of a ``basic.ack`` (AMQP 0-9-1, class 60, method 80).
    _ACK = b"\x00\x3c\x00\x50"

    def _forward(self, data: bytes, _: socket.socket, sink: socket.socket, *, answers: bool) -> None:
        if not (answers and self._ACK in data):
            sink.sendall(data)


@pytest.mark.parametrize("many", [False, True], ids=["single", "window"])
def test_a_host_that_confirms_nothing_is_left(vhost: Vhost, queue: str, many: bool) -> None:
    """When a confirm does not come the next attempt goes to another host, also from an idle connection."""
    sent = [message() for _ in range(3)]
    with (
        CutOffNode(vhost.amqp_url) as node,
        publisher(f"{node.url};{vhost.amqp_url}", confirm_timeout=BRIEFLY) as publishing,
    ):
        if many:
            assert all(each.error is None for each in publishing.publish_many(sent))
        else:
            for each in sent:
                publishing.publish(each)
    assert set(ids(drained(vhost))) == {each.message_id for each in sent}


def test_one_connection_too_many_is_a_matter_of_patience(vhost: Vhost, queue: str) -> None:
    """A connection limit is BrokerUnavailable, not a refused user, and passes when the limit is raised."""
    with Management(vhost.management_url, vhost.name) as management:
        limit = management._path("vhost-limits") + "/max-connections"
        management._request("PUT", limit, json={"value": 0})
        with publisher(vhost.amqp_url, connect_patience=BRIEFLY) as publishing:
            with pytest.raises(
                errors.BrokerUnavailable, match=r"takes no more connections.*set_vhost_limits"
            ):
                publishing.publish(message())
            management._request("DELETE", limit)
            publishing.publish(message())
    assert len(drained(vhost)) == 1


def test_a_full_queue_refuses_and_nothing_is_lost_or_doubled(vhost: Vhost) -> None:
    """A nack raises Refused once the patience is over; what was confirmed is there once, the rest not."""
    declare_queue(vhost, max_length=1, overflow="reject-publish")
    confirmed: list[str] = []
    with publisher(vhost.amqp_url, patience=BRIEFLY) as publishing:
        began = time.monotonic()

        def publish_until_full() -> None:
            # The limit is soft: a queue takes one or a few more.
            for sent in (message() for _ in range(10)):
                publishing.publish(sent)
                confirmed.append(sent.message_id)

        with pytest.raises(errors.Refused, match="nacked") as caught:
            publish_until_full()
        assert 1 <= elapsed(began) < 10
    assert isinstance(caught.value, OperationalError)
    with open_channel(vhost.amqp_url) as channel:
        taken = [channel.basic_get(QUEUE, no_ack=True) for _ in confirmed]
        assert ids(taken) == confirmed
        assert channel.basic_get(QUEUE, no_ack=True) is None


@dataclass
class Load:
    """Threads that publish until each has had its share and the broker was restarted under them.

    ``returned`` are the ids whose publish returned; ``failed`` are the messages whose publish raised.
    """

    publishing: Publisher
    over: threading.Event = field(default_factory=threading.Event)
    returned: list[str] = field(default_factory=list)
    failed: list[tuple[Outgoing, Exception]] = field(default_factory=list)

    def run(self) -> None:
        """Publish in one thread."""
        count = 0
        while count < MESSAGES // THREADS or not self.over.is_set():
            count += 1
            sent = message()
            try:
                self.publishing.publish(sent)
            except errors.BrokerError as exc:
                self.failed.append((sent, exc))
            else:
                self.returned.append(sent.message_id)


def publish_while_killed(broker: Broker, vhost: Vhost, publishing: Publisher, *, after: int) -> Load:
    """Publish from several threads, kill the broker with SIGKILL among them, and start it again."""
    load = Load(publishing)
    with ThreadPoolExecutor(THREADS) as threads:
        running = [threads.submit(load.run) for _ in range(THREADS)]
        try:
            wait_until(lambda: len(load.returned) >= after, PATIENCE, f"{after} messages are published")
            broker.kill()
            wait_until(lambda: load.failed, PATIENCE, "a publish has failed")
            broker.restart()
            with Management(vhost.management_url, vhost.name) as management:
                wait_for_leader(management)
        finally:
            load.over.set()
        for thread in running:
            thread.result()
    return load


def wait_until_counted(vhost: Vhost) -> None:
    """Publish a message and wait until the broker has counted it.

    RabbitMQ 3.10 loses the leader of a queue that is killed within half a second of its declaration.
    """
    with publisher(vhost.amqp_url) as publishing, Management(vhost.management_url, vhost.name) as management:

        def is_counted() -> bool:
            status = management.queue(QUEUE)
            return status is not None and bool(status.ready)

        publishing.publish(message())
        wait_until(is_counted, PATIENCE, "the message is counted")


def test_no_confirmed_message_is_lost_when_the_broker_is_killed(own_broker: Broker) -> None:
    """SIGKILL under four publishing threads: every publish that returned is in the queue afterwards.

    The others raised, and published again under the same ids they are there, too.
    """
    with own_broker.fresh_vhost() as vhost:
        declare_queue(vhost)
        wait_until_counted(vhost)
        with publisher(vhost.amqp_url, patience=BRIEFLY, connect_patience=BRIEFLY) as publishing:
            load = publish_while_killed(own_broker, vhost, publishing, after=50)
            for sent, _ in load.failed:
                publishing.publish(sent, patience=PATIENCE)
        assert len(load.returned) + len(load.failed) >= MESSAGES
        kinds = {type(exc) for _, exc in load.failed}
        assert kinds <= {ConfirmUnknown, BrokerUnavailable}
        there = set(ids(drained(vhost)))
        assert set(load.returned) <= there
        assert {sent.message_id for sent, _ in load.failed} <= there


@pytest.mark.one_broker
def test_without_confirms_the_same_kill_loses_messages(own_broker: Broker) -> None:
    """Mutation control: with confirms off, a publish that returned is missing after the same kill."""
    lost: set[str] = set()
    with own_broker.fresh_vhost() as vhost:
        declare_queue(vhost)
        wait_until_counted(vhost)
        for _ in range(3):
            with publisher(
                vhost.amqp_url, confirms=False, patience=BRIEFLY, connect_patience=BRIEFLY
            ) as publishing:
                load = publish_while_killed(own_broker, vhost, publishing, after=1000)
            lost = set(load.returned) - set(ids(drained(vhost)))
            if lost:
                break
    assert lost


def test_a_memory_alarm_refuses_and_leaves_nothing_behind(broker: Broker, vhost: Vhost, queue: str) -> None:
    """While the broker is short of memory a publish is Refused, on a new and on an idle connection.

    Not a byte of it is stored when the alarm clears, and publishing goes on.
    """
    brief = {"confirm_timeout": BRIEFLY, "patience": 3 * BRIEFLY}
    with publisher(vhost.amqp_url, **brief) as idle, publisher(vhost.amqp_url, **brief) as new:
        idle.publish(message(body="before"))
        with memory_alarm(broker):
            for publishing in (idle, new):
                with pytest.raises(errors.Refused, match="blocks publishers"):
                    publishing.publish(message(body="during"))
        for publishing in (idle, new):
            publishing.publish(message(body="after"))
    assert [found.body for found in drained(vhost)] == ["before", "after", "after"]


def test_a_publish_outlasts_a_short_memory_alarm(broker: Broker, vhost: Vhost, queue: str) -> None:
    """A publish that began during an alarm succeeds, once, when the alarm clears within its patience."""
    sent = message()
    with publisher(vhost.amqp_url) as publishing, ThreadPoolExecutor(1) as thread:
        publishing.publish(message(body="before"))
        with memory_alarm(broker):
            waiting = thread.submit(publishing.publish, sent)
            with pytest.raises(TimeoutError):
                waiting.result(1)
        waiting.result(30)
    assert ids(drained(vhost))[1:] == [sent.message_id]


def test_a_fork_after_a_publish_shares_nothing(vhost: Vhost, queue: str) -> None:
    """Parent and child of an os.fork publish 50 messages each, over connections of their own."""
    script = textwrap.dedent(
        """
        import os, sys
        from tests.support.publishing import message, publisher
        with publisher(sys.argv[1]) as publishing:
            publishing.publish(message(body="before"))
            child = os.fork()
            who = "child" if child == 0 else "parent"
            for number in range(50):
                publishing.publish(message(body=f"{who} {number}"))
        if child:
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    subprocess.run(
        [sys.executable, "-c", script, vhost.amqp_url],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    expected = ["before", *(f"{who} {n}" for who in ("child", "parent") for n in range(50))]
    assert sorted(found.body for found in drained(vhost)) == sorted(expected)


def test_connections_that_the_broker_closed_cast_no_doubt(vhost: Vhost, queue: str) -> None:
    """After the broker closed all idle connections, however many, the next publish succeeds, once."""
    with publisher(vhost.amqp_url, patience=timedelta(seconds=10)) as publishing:
        with ThreadPoolExecutor(20) as threads:
            barrier = threading.Barrier(20)

            def publish_together() -> None:
                barrier.wait(10)
                publishing.publish(message())

            for each in [threads.submit(publish_together) for _ in range(20)]:
                each.result()
        close_connections(vhost, publishing)
        sent, began = message(), time.monotonic()
        publishing.publish(sent)
        assert elapsed(began) < 3
    assert ids(drained(vhost)).count(sent.message_id) == 1


def test_an_unknown_stays_unknown_whatever_follows(vhost: Vhost, queue: str) -> None:
    """After an attempt without a confirm a later refusal proves nothing: the error is ConfirmUnknown."""
    with MuteProxy(vhost.amqp_url) as proxy:
        with (
            publisher(proxy.url, confirm_timeout=2 * BRIEFLY) as publishing,
            ThreadPoolExecutor(1) as thread,
            open_channel(vhost.amqp_url) as channel,
        ):
            publishing.publish(message())
            proxy.mute()
            # In a burst no answer is awaited before the message is sent.
            sending = thread.submit(publishing.publish, message(body="doubtful"))
            wait_until(lambda: channel.queue_declare(QUEUE, passive=True)[1] == 2, PATIENCE, "it is stored")
            channel.queue_delete(QUEUE)
            with pytest.raises(errors.ConfirmUnknown) as caught:
                sending.result(30)
        assert isinstance(caught.value.__cause__, errors.Unroutable)
        assert isinstance(caught.value, OperationalError)
