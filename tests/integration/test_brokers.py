"""What every provider's broker does, on a live one of each."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

import amqp
import pytest

from tests.support.raw_amqp import get, open_channel, publish
from unlost.broker.management import Management
from unlost.errors import AccessRefused, BrokerUnavailable, HarnessError
from unlost.testing.brokers import Broker, Vhost
from unlost.testing.brokers.endpoint import parse_endpoint
from unlost.testing.brokers.probe import Admin, check_amqp
from unlost.testing.waiting import wait_until

QUEUE = "ledger"
PATIENCE = timedelta(seconds=30)
BRIEFLY = timedelta(seconds=1)


def connects(url: str) -> bool:
    """Tell whether the vhost of a URL lets us in."""
    try:
        check_amqp(parse_endpoint(url, "url", ("amqp",)))
    except AccessRefused:
        return False
    return True


def store_one_message(vhost: Vhost) -> None:
    """Confirm a persistent message into a quorum queue."""
    with open_channel(vhost.amqp_url) as channel:
        channel.queue_declare(QUEUE, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
        assert publish(channel, "", QUEUE, "kept")


def wait_until_counted(vhost: Vhost) -> None:
    """Wait until the queue is old enough for RabbitMQ 3.10 to recover it after a SIGKILL.

    Killed within about half a second of its declaration, it would stay without a leader. The broker
    refreshes a queue's totals every few seconds: once they show the message, that time is over.
    """
    with Management(vhost.management_url, vhost.name) as management:
        wait_until(lambda: is_led(management, with_messages=1), PATIENCE, "the message is counted")


def is_led(management: Management, with_messages: int = 0) -> bool:
    """Tell whether the queue has a leader and at least so many messages.

    Asked of the list: RabbitMQ 3.10 reports no totals of a single queue for a long time.
    """
    return any(
        queue.leader and (queue.ready or 0) >= with_messages
        for queue in management.queues()
        if queue.declared.name == QUEUE
    )


def assert_the_message_is_there(vhost: Vhost) -> None:
    """Take the message of :func:`store_one_message` out of the queue."""
    with Management(vhost.management_url, vhost.name) as management:
        wait_until(lambda: is_led(management), PATIENCE, "the queue has a leader")
    with open_channel(vhost.amqp_url) as channel:
        assert get(channel, QUEUE).body == "kept"


def test_two_vhosts_share_nothing(broker: Broker) -> None:
    """A queue of one fresh vhost does not exist in another."""
    with broker.fresh_vhost() as one, broker.fresh_vhost() as other:
        assert one.name != other.name
        with open_channel(one.amqp_url) as channel:
            channel.queue_declare(QUEUE, durable=True)
        with pytest.raises(amqp.NotFound), open_channel(other.amqp_url) as channel:
            channel.queue_declare(QUEUE, passive=True)


def test_a_vhost_is_gone_afterwards(broker: Broker) -> None:
    """A fresh vhost accepts connections while it is in use and is deleted at the end."""
    with broker.fresh_vhost() as vhost:
        assert connects(vhost.amqp_url)
    assert not connects(vhost.amqp_url)


def test_a_vhost_is_gone_after_a_failed_test(broker: Broker) -> None:
    """An exception in the body does not leave the vhost behind."""
    names: list[Vhost] = []

    def failing_test() -> None:
        with broker.fresh_vhost() as vhost:
            names.append(vhost)
            raise LookupError

    with pytest.raises(LookupError):
        failing_test()
    assert not connects(names[0].amqp_url)


def test_the_broker_knows_its_version(broker: Broker) -> None:
    """The version is that of the management API."""
    endpoint = parse_endpoint(broker.management_url, "url", ("http",))
    assert broker.version == Admin(endpoint).version()
    assert broker.version >= (3, 10, 0)


def test_nothing_shows_the_password(broker: Broker, vhost: Vhost) -> None:
    """Neither a broker's nor a vhost's repr holds the password, their URLs do."""
    password = parse_endpoint(broker.amqp_url(), "url", ("amqp", "amqps")).password
    assert password in vhost.amqp_url
    assert password in vhost.management_url
    assert password not in repr(broker) + repr(vhost)


def test_a_killed_node_comes_back_with_its_messages(own_broker: Broker) -> None:
    """A confirmed persistent message survives SIGKILL, under the same URLs."""
    with own_broker.fresh_vhost() as vhost:
        store_one_message(vhost)
        wait_until_counted(vhost)
        own_broker.kill()
        with pytest.raises(BrokerUnavailable):
            check_amqp(parse_endpoint(vhost.amqp_url, "url", ("amqp",)), BRIEFLY)
        own_broker.restart()
        assert own_broker.amqp_url(vhost.name) == vhost.amqp_url
        assert own_broker.management_url == vhost.management_url
        assert_the_message_is_there(vhost)


def test_a_running_node_can_be_restarted(own_broker: Broker) -> None:
    """A restart without a kill before it stops the node cleanly and keeps its messages."""
    with own_broker.fresh_vhost() as vhost:
        store_one_message(vhost)
        own_broker.restart()
        assert_the_message_is_there(vhost)


def test_a_paused_node_makes_clients_wait(own_broker: Broker) -> None:
    """A frozen node answers nobody, and everybody once it goes on."""
    with own_broker.fresh_vhost() as vhost:
        endpoint = parse_endpoint(vhost.amqp_url, "url", ("amqp",))
        own_broker.pause()
        with pytest.raises(BrokerUnavailable, match=endpoint.place):
            check_amqp(endpoint, BRIEFLY)
        own_broker.resume()
        check_amqp(endpoint)


def test_the_end_of_a_vhost_tolerates_a_dead_broker(
    own_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A test that leaves its broker dead ends with a warning that names the vhost."""
    with own_broker.fresh_vhost() as vhost:
        own_broker.kill()
    assert f"vhost {vhost.name} was not deleted" in caplog.text


def test_a_paused_node_can_be_ended(
    own_broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Freezing a node is no obstacle to ending a vhost on it, to killing it, nor to closing it, twice."""
    monkeypatch.setattr("unlost.testing.brokers.base.VHOST_PATIENCE", BRIEFLY * 2)
    with own_broker.fresh_vhost() as vhost:
        own_broker.pause()
    assert f"vhost {vhost.name} was not deleted" in caplog.text
    own_broker.kill()
    own_broker.restart()
    own_broker.pause()
    own_broker.close()
    own_broker.close()
    with pytest.raises(HarnessError):
        own_broker.restart()


def test_a_refused_user_is_told_from_a_dead_broker(broker: Broker) -> None:
    """A wrong password is refused at once; it is not taken for a broker that is down."""
    right = parse_endpoint(broker.amqp_url(), "url", ("amqp", "amqps"))
    started = time.monotonic()
    with pytest.raises(AccessRefused):
        check_amqp(replace(right, password="wrong"))
    assert time.monotonic() - started < 10
