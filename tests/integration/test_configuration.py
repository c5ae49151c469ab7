"""The configurations in ``rabbitmq/``: each boots, and does what it says."""

from __future__ import annotations

import json
import os
import ssl
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import yaml

from tests.support.brokers import require
from tests.support.configured import configuration, tls_node
from tests.support.definitions import FILE, ROOT, definitions
from tests.support.raw_amqp import open_channel, publish
from unlost.broker.apply import pending
from unlost.broker.management import Management
from unlost.testing.brokers import DockerCluster, docker_cluster
from unlost.testing.waiting import wait_until
from unlost.topology.model import Topology

PATIENCE = timedelta(seconds=90)


@pytest.fixture(scope="module")
def three(request: pytest.FixtureRequest) -> Iterator[DockerCluster]:
    """Three nodes with the project's configuration and definitions."""
    require("docker", request.config)
    with docker_cluster(environ=os.environ, files=configuration(cluster=True)) as cluster:
        yield cluster


def test_the_definitions_are_those_of_the_topology() -> None:
    """The committed definitions are the example topology, expanded; else write them anew."""
    assert json.loads(FILE.read_text()) == definitions()


def test_the_compose_file_mounts_what_is_there() -> None:
    """Every file that a service mounts exists; one node is started by default, three by their profile."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    mounted = {
        volume.partition(":")[0]
        for service in services.values()
        for volume in service["volumes"]
        if volume.startswith("./")
    }
    assert [path for path in mounted if not (ROOT / path).exists()] == []
    assert [name for name, service in services.items() if "profiles" not in service] == ["rabbitmq"]
    assert [name for name, service in services.items() if service.get("profiles") == ["three"]] == [
        "rmq1",
        "rmq2",
        "rmq3",
    ]
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service["ports"])


def test_one_node_speaks_tls_with_those_it_knows(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """With a certificate of the authority a client comes in; without one, on neither listener."""
    require("docker", request.config)
    with tls_node(tmp_path / "tls") as node:
        with node.connect() as connection:
            channel = connection.channel()
            assert channel.queue_declare("shop.payments", passive=True).message_count == 0
        with pytest.raises((ssl.SSLError, ConnectionError)):
            node.connect(certificate=False)
        with pytest.raises(httpx.TransportError):
            node.overview(node.context(certificate=False))
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            node.connect(known=False)


def test_three_nodes_hold_the_topology_three_times(three: DockerCluster) -> None:
    """Every queue of the definitions has three members, a policy in effect, and nothing is left to apply."""
    with Management(three.management_url, "/") as management:
        assert pending(Topology.load(ROOT / "topology"), management) == ()
        listed = management._json("GET", "queues/%2F?disable_stats=true")
    assert {len(queue["members"]) for queue in listed} == {3}


def test_a_queue_is_led_by_the_node_that_leads_fewest(three: DockerCluster) -> None:
    """Leaders are shared out: a new queue goes to a node with the fewest.

    Those of the definitions need not be shared out: RabbitMQ loads them side by side, and each
    counts the leaders before the others have theirs.
    """
    with Management(three.management_url, "/") as management:
        led = Counter(queue["leader"] for queue in management._json("GET", "queues?disable_stats=true"))
    busiest = max(three.nodes, key=lambda node: led[node.name])
    with three.fresh_vhost() as vhost:
        with open_channel(busiest.amqp_url(vhost.name)) as channel:
            channel.queue_declare("q", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
        with Management(three.management_url, vhost.name) as management:
            (queue,) = management._json("GET", f"queues/{vhost.name}?disable_stats=true")
    assert led[queue["leader"]] == min(led[node.name] for node in three.nodes)


def test_a_node_is_cut_off_and_killed_and_nothing_is_lost(three: DockerCluster) -> None:
    """The majority goes on without the node that is cut off, then killed; healed, all see each other."""
    _, second, third = three.nodes
    with three.fresh_vhost() as vhost:
        with open_channel(third.amqp_url(vhost.name)) as channel:
            channel.queue_declare("q", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
            assert publish(channel, "", "q", "before")
            second.disconnect()
            wait_until(lambda: second.running_nodes() == 1, PATIENCE, "the node is alone")
            assert publish(channel, "", "q", "while it is cut off")
            second.reconnect()
            wait_until(lambda: second.running_nodes() == 3, PATIENCE, "the node is back")
            second.kill()
            assert publish(channel, "", "q", "while it is dead")
            three.nodes[0].stop_app()
        three.heal()
        with open_channel(second.amqp_url(vhost.name)) as channel:
            assert channel.queue_declare("q", passive=True).message_count == 3
