"""Publishers under faults: no message is ever called ok and absent, nor failed and there."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import amqp
import pytest

from tests.support.brokers import require
from tests.support.publish_chaos import Census, judge, load
from tests.support.publishing import (
    BRIEFLY,
    PATIENCE,
    QUEUE,
    declare_queue,
    drained,
    message,
    publisher,
    wait_for_leader,
)
from tests.support.raw_amqp import open_channel
from unlost import errors
from unlost.broker.management import Management
from unlost.cli.topologies.apply import SETTLE
from unlost.core.outcome import Outcome
from unlost.testing.brokers import Broker, DockerCluster, Vhost, docker_cluster
from unlost.testing.brokers.alarms import memory_alarm
from unlost.testing.brokers.cluster import ClusterNode
from unlost.testing.proxy import DelayingProxy, FlakyProxy
from unlost.testing.waiting import wait_until

pytestmark = pytest.mark.system

#: Generous, because what is judged is what publishers say in the end, not how soon.
LONG = timedelta(seconds=60)


def fill(vhost: Vhost, name: str) -> None:
    """Declare a queue of one message that refuses more, and publish until it does."""
    declare_queue(vhost, name, max_length=1, overflow="reject-publish")
    with publisher(vhost.amqp_url, patience=BRIEFLY) as publishing:

        def is_full() -> bool:
            try:
                publishing.publish(message(name), patience=BRIEFLY / 10)
            except errors.Refused:
                return True
            return False

        wait_until(is_full, PATIENCE, f"{name} is full")


def test_py_amqps_own_confirms_take_a_late_one_for_anothers(vhost: Vhost) -> None:
    """What the next test is about: after a timeout py-amqp calls a refused message confirmed."""
    declare_queue(vhost)
    fill(vhost, "full")
    with (
        DelayingProxy(vhost.amqp_url) as proxy,
        open_channel(proxy.url) as channel,
        ThreadPoolExecutor(1) as thread,
    ):
        channel.basic_publish_confirm(amqp.Message("first"), "", QUEUE, timeout=10)
        proxy.hold()
        with pytest.raises(TimeoutError):
            channel.basic_publish_confirm(amqp.Message("late"), "", QUEUE, confirm_timeout=1)
        sent = proxy.sent
        publishing = thread.submit(channel.basic_publish_confirm, amqp.Message("refused"), "", "full")
        wait_until(lambda: proxy.sent > sent, PATIENCE, "the second message is on its way")
        proxy.release()
        # No exception: the confirm of the first message is taken for this one's, which is nowhere.
        publishing.result(30)
        assert "refused" not in [found.body for found in drained(vhost, QUEUE)]
    with open_channel(vhost.amqp_url) as channel:
        bodies = []
        while (found := channel.basic_get("full", no_ack=True)) is not None:
            bodies.append(found.body)
    assert bodies
    assert "refused" not in bodies


def test_a_late_confirm_confirms_nothing_else(vhost: Vhost) -> None:
    """After a timeout the confirm that comes late is nobody's: the refused message is Refused."""
    declare_queue(vhost)
    fill(vhost, "full")
    with (
        DelayingProxy(vhost.amqp_url) as proxy,
        publisher(proxy.url, confirm_timeout=BRIEFLY, connect_patience=PATIENCE) as publishing,
    ):
        publishing.publish(message())
        proxy.hold()
        with pytest.raises(errors.ConfirmUnknown):
            publishing.publish(message(body="late"), patience=BRIEFLY / 10)
        proxy.release()
        with pytest.raises(errors.Refused, match="nacked"):
            publishing.publish(message("full"), patience=2 * BRIEFLY)
        # In a window both are on one channel: each confirm is matched to its own message.
        mixed = [message("full" if n % 2 else QUEUE) for n in range(20)]
        published = list(publishing.publish_many(mixed, patience=BRIEFLY))
    assert [str(each.outcome) for each in published] == ["ok", "failed"] * 10


@pytest.mark.parametrize("seed", [1])
def test_connections_that_break_anywhere(vhost: Vhost, seed: int) -> None:
    """Cut and black-holed at random positions, in the handshake or in a frame, no outcome is wrong."""
    _flaky(vhost, seed=seed, each=1000)


@pytest.mark.long
@pytest.mark.parametrize("seed", [2, 3])
def test_connections_that_break_anywhere_for_long(vhost: Vhost, seed: int) -> None:
    """The same with many more messages."""
    _flaky(vhost, seed=seed, each=10_000)


def _flaky(vhost: Vhost, *, seed: int, each: int) -> None:
    declare_queue(vhost)
    with (
        FlakyProxy(vhost.amqp_url, random.Random(seed), most=300_000) as proxy,
        publisher(
            proxy.url, confirm_timeout=BRIEFLY, patience=PATIENCE, connect_patience=PATIENCE
        ) as publishing,
        load(publishing, each=each) as running,
    ):
        pass
    assert proxy.cut > 2
    assert proxy.holes > 0
    found = Census(vhost).take_all()
    wrong = judge(running.told, found, running.given)
    assert wrong == [], f"{running.counts()}, {proxy.cut} cut, {proxy.holes} black-holed"
    _report(f"flaky, seed {seed}", running.given, running.counts(), found)


def _report(what: str, given: int, counts: dict[str, int], found: dict[str, int]) -> None:
    copies = sum(found.values()) - len(found)
    print(f"\n{what}: {given} given, {counts}, {len(found)} there, {copies} copies too many")


Fault = Callable[[Broker, Vhost], None]


def kill(broker: Broker, vhost: Vhost) -> None:
    """End the broker with SIGKILL and start it again."""
    broker.kill()
    broker.restart()
    with Management(vhost.management_url, vhost.name) as management:
        wait_for_leader(management)


def restart(broker: Broker, vhost: Vhost) -> None:
    """Stop RabbitMQ in an orderly way and start it again."""
    broker.rabbitmqctl("stop_app")
    broker.rabbitmqctl("start_app")
    with Management(vhost.management_url, vhost.name) as management:
        wait_for_leader(management)


def alarm(broker: Broker, vhost: Vhost) -> None:
    """Put the broker short of memory for a moment."""
    with memory_alarm(broker):
        time.sleep(3)


def freeze(broker: Broker, vhost: Vhost) -> None:
    """Stop all its processes for longer than a confirm may take."""
    broker.pause()
    time.sleep(4)
    broker.resume()


def fill_up(broker: Broker, vhost: Vhost) -> None:
    """Let the queue refuse for a moment, by a policy."""
    with Management(vhost.management_url, vhost.name) as management:
        policy = {
            "pattern": ".*",
            "definition": {"max-length": 1, "overflow": "reject-publish"},
            "apply-to": "queues",
        }
        path = management._path("policies") + "/full"
        management._request("PUT", path, json=policy)
        time.sleep(3)
        management._request("DELETE", path)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", [kill, restart, alarm, freeze, fill_up])
def test_a_broker_in_trouble(own_broker: Broker, fault: Fault) -> None:
    """Killed, restarted, out of memory, frozen and full, three times each under load: no outcome is wrong."""
    with own_broker.fresh_vhost() as vhost:
        declare_queue(vhost)
        time.sleep(SETTLE.total_seconds())
        with (
            publisher(
                vhost.amqp_url, confirm_timeout=2 * BRIEFLY, patience=LONG, connect_patience=LONG
            ) as publishing,
            load(publishing, each=8_000) as running,
        ):
            for part in (1, 2, 3):
                running.wait_for(part * 4_000)
                fault(own_broker, vhost)
        found = Census(vhost).take_all()
        wrong = judge(running.told, found, running.given)
        assert wrong == [], running.counts()
        _report(fault.__name__, running.given, running.counts(), found)


@pytest.mark.long
@pytest.mark.one_broker
def test_a_queue_that_dies_at_birth_forgets_what_it_confirmed(own_broker: Broker) -> None:
    """RabbitMQ's own limit, which is why a topology settles: killed in its first second, a queue is empty."""

    def is_forgotten() -> bool:
        with own_broker.fresh_vhost() as vhost:
            declare_queue(vhost)
            with publisher(vhost.amqp_url) as publishing:
                published = list(publishing.publish_many([message() for _ in range(500)], window=500))
            kill(own_broker, vhost)
            return all(each.outcome is Outcome.OK for each in published) and not Census(vhost).take_all()

    wait_until(is_forgotten, timedelta(minutes=4), "confirmed messages are gone")


def leader(cluster: DockerCluster, vhost: Vhost, but: ClusterNode | None = None) -> ClusterNode | None:
    """Return the node that leads the queue, as another node than ``but`` sees it; ``None`` if none does."""
    witness = next(node for node in cluster.nodes if node is not but)
    with Management(witness.management_url, vhost.name) as management:
        status = management.queue(QUEUE)
    led = next((node for node in cluster.nodes if status and node.name == status.leader), None)
    return None if led is but else led


def kill_node(node: ClusterNode) -> None:
    """End it with SIGKILL."""
    node.kill()


def cut_off(node: ClusterNode) -> None:
    """Cut it off from the other nodes, while its clients still reach it."""
    node.disconnect()


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", [kill_node, cut_off])
def test_a_cluster_that_loses_its_leader(
    request: pytest.FixtureRequest, fault: Callable[[ClusterNode], None]
) -> None:
    """While the queue's leader is killed, or cut off from its cluster, three times: no outcome is wrong."""
    require("docker", request.config)
    with docker_cluster(environ=os.environ) as cluster, cluster.fresh_vhost() as vhost:
        declare_queue(vhost)
        with (
            publisher(
                cluster.amqp_url(vhost.name),
                confirm_timeout=2 * BRIEFLY,
                patience=LONG,
                connect_patience=LONG,
            ) as publishing,
            load(publishing, each=8_000) as running,
        ):
            for part in (1, 2, 3):
                running.wait_for(part * 4_000)
                led = wait_until(lambda: leader(cluster, vhost), LONG, "the queue has a leader")
                if led is None:
                    pytest.fail("nobody leads")
                fault(led)
                wait_until(lambda led=led: leader(cluster, vhost, led), LONG, "another leads")  # type: ignore[misc]
                running.wait_for(min(len(running.told) + 2_000, part * 8_000))
                cluster.heal()
        found = Census(vhost).take_all()
        wrong = judge(running.told, found, running.given)
        assert wrong == [], running.counts()
        _report(fault.__name__, running.given, running.counts(), found)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_without_confirms_the_judge_finds_losses(own_broker: Broker) -> None:
    """Mutation control: with confirms off, messages that were called ok are absent after the same kills."""
    with own_broker.fresh_vhost() as vhost:
        declare_queue(vhost)
        with (
            publisher(vhost.amqp_url, confirms=False, patience=LONG, connect_patience=LONG) as publishing,
            load(publishing, each=8_000) as running,
        ):
            for part in (1, 2, 3):
                running.wait_for(part * 4_000)
                kill(own_broker, vhost)
        wrong = judge(running.told, Census(vhost).take_all(), running.given)
    assert any("ok, but absent" in each for each in wrong)
