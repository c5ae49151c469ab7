"""Three RabbitMQ nodes in containers, which can be killed, stopped and cut off from each other one by one.

::

    with docker_cluster(environ=os.environ) as cluster, cluster.fresh_vhost() as vhost:
        app.conf.broker_url = cluster.amqp_url(vhost.name)   # all nodes, separated by ";"
        cluster.nodes[1].kill()
        cluster.nodes[2].disconnect()
        cluster.heal()

Clients reach each node on fixed ports of 127.0.0.1. Each two nodes reach each other over a network of their
own, so a node that is disconnected from it is cut off from the other and not from its clients, which is the
harder case: they can still publish to it.
"""

from __future__ import annotations

import io
import secrets
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import timedelta
from itertools import combinations
from typing import Any

from unlost.errors import BrokerUnavailable, HarnessError
from unlost.testing.brokers.base import BOOT_PATIENCE, Broker, Vhost
from unlost.testing.brokers.docker import (
    OWNER_LABEL,
    DockerBroker,
    connect_engine,
    image_of,
    remove_orphans,
    translated_errors,
)
from unlost.testing.brokers.endpoint import Endpoint
from unlost.testing.brokers.owner import own_name
from unlost.testing.brokers.ports import free_ports
from unlost.testing.waiting import wait_until

_CONFIGURATION = "/etc/rabbitmq"


class ClusterNode(DockerBroker):
    """One node of a cluster. What a broker can do it can, and be cut off and stopped besides.

    Args:
        container: Its container, created.
        networks: The network that leads to each other node, by that node's ``hostname``.
        hostname: Its name on that network; the node is ``rabbit@hostname``.
        amqp: The AMQP listener on 127.0.0.1.
        management: The management listener on 127.0.0.1.
    """

    def __init__(
        self,
        container: Any,
        networks: Mapping[str, Any],
        hostname: str,
        amqp: Endpoint,
        management: Endpoint,
    ) -> None:
        Broker.__init__(self, amqp, management)
        self._made = container
        self._networks = networks
        self._cut: set[str] = set()
        self._closed = False
        self.hostname = hostname

    @property
    def name(self) -> str:
        """Return the node's name in the cluster."""
        return f"rabbit@{self.hostname}"

    @property
    def _node(self) -> Any:
        return self._made

    def disconnect(self, *others: ClusterNode) -> None:
        """Cut it off from other nodes, from all when none is named; its clients still reach it.

        Both sides notice within ``net_ticktime`` (8 s here).
        """
        for name in [other.hostname for other in others] or self._networks:
            if name not in self._cut:
                with translated_errors("be disconnected"):
                    self._networks[name].disconnect(self._made)
                self._cut.add(name)

    def reconnect(self) -> None:
        """Let it reach the nodes again that it was cut off from."""
        for name in sorted(self._cut):
            with translated_errors("be connected"):
                self._networks[name].connect(self._made, aliases=[self.hostname])
            self._cut.remove(name)

    def stop_app(self) -> None:
        """Stop RabbitMQ in an orderly way and leave the Erlang node running."""
        self.rabbitmqctl("stop_app")

    def start_app(self) -> None:
        """Start RabbitMQ again; without effect if it runs."""
        self.rabbitmqctl("start_app")

    def boot(self) -> None:
        """Start the container and do not wait."""
        with translated_errors("be started"):
            self._made.start()

    def wait_ready(self) -> None:
        """Wait until AMQP and management answer."""
        self._wait_ready()

    def _drop_vhost(self, name: str) -> None:
        """Leave a vhost to go with the cluster.

        Deleted right after a rolling restart, one of 4.3.6 took all dead-lettering of a node with it: a
        process that still asked for its queue failed, minutes later, until the supervisor of all ended
        (of the kind of rabbitmq-server #16652).
        """

    def running_nodes(self) -> int:
        """Return how many nodes it sees running, itself included."""
        return self._admin().running_nodes()

    def close(self) -> None:
        """Remove the container with its data."""
        if not self._closed:
            self._closed = True
            with translated_errors("be removed"):
                self._made.remove(force=True, v=True)


class DockerCluster:
    """Nodes that have formed a cluster by classic peer discovery.

    A process that is killed leaves containers and networks behind; the next start of any broker of this
    package on this machine removes them.

    Args:
        environ: Where the engine is and which image, as for a single container.
        size: How many nodes.
        files: Further files for every node: path below ``/etc/rabbitmq``, and content.

    Raises:
        HarnessError: The containers did not start, or did not form a cluster.
    """

    def __init__(
        self, environ: Mapping[str, str], *, size: int = 3, files: Mapping[str, str] | None = None
    ) -> None:
        self._closed = False
        self.nodes: tuple[ClusterNode, ...] = ()
        self._engine_context = connect_engine(environ)
        engine = self._engine_context.__enter__()
        self._networks: list[Any] = []
        try:
            with translated_errors("be started"):
                remove_orphans(engine)
                self._create(engine, image_of(engine, environ), size, files or {})
            self._form()
        except BaseException:
            self.close()
            raise

    def amqp_url(self, vhost: str = "/") -> str:
        """Return the URLs of all nodes, separated by ``;``, as kombu takes them."""
        return ";".join(node.amqp_url(vhost) for node in self.nodes)

    @property
    def management_url(self) -> str:
        """Return the management API of a node that answers.

        Raises:
            HarnessError: None does.
        """
        for node in self.nodes:
            try:
                node.running_nodes()
            except BrokerUnavailable:
                continue
            return node.management_url
        raise HarnessError("no node of the cluster answers")

    def fresh_vhost(self) -> AbstractContextManager[Vhost]:
        """Create an empty vhost through the first node, and delete it at the end."""
        return self.nodes[0].fresh_vhost()

    def heal(self) -> None:
        """Undo all that was done to the nodes, and wait until all of them run together again.

        Raises:
            HarnessError: They do not; the message says how many do.
        """
        for node in self.nodes:
            node.resume()
            node.reconnect()
        for node in self.nodes:
            node.boot()  # without effect on one that runs
        for node in self.nodes:
            wait_until(lambda node=node: _starts(node), BOOT_PATIENCE, f"{node.name} starts")  # type: ignore[misc]
        self._wait_formed()

    def close(self) -> None:
        """Remove containers and networks; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            for node in self.nodes:
                node.close()
            for network in self._networks:
                with translated_errors("be removed"):
                    network.remove()
        finally:
            self._engine_context.__exit__(None, None, None)

    def _create(self, engine: Any, image: str, size: int, files: Mapping[str, str]) -> None:
        name = f"unlost-{secrets.token_hex(6)}"
        labels = {OWNER_LABEL: own_name()}
        hosts = [f"rmq{number}" for number in range(1, size + 1)]
        between = self._connect(engine, name, hosts)
        ports = free_ports(2 * size)
        password, cookie = secrets.token_hex(16), secrets.token_hex(16)
        for number, host in enumerate(hosts):
            amqp = Endpoint("amqp", "127.0.0.1", ports[2 * number], "unlost", password, "/")
            management = Endpoint("http", "127.0.0.1", ports[2 * number + 1], "unlost", password)
            container = engine.containers.create(
                image,
                name=f"{name}-{host}",
                hostname=host,
                labels=labels,
                environment={
                    "RABBITMQ_DEFAULT_USER": "unlost",
                    "RABBITMQ_DEFAULT_PASS": password,
                    "RABBITMQ_ERLANG_COOKIE": cookie,
                },
                ports={
                    "5672/tcp": (amqp.host, amqp.port),
                    "15672/tcp": (management.host, management.port),
                },
            )
            networks = between[host]
            self.nodes += (ClusterNode(container, networks, host, amqp, management),)
            for network in networks.values():
                network.connect(container, aliases=[host])
            own = {"conf.d/40-cluster.conf": _cluster_conf(hosts)}
            container.put_archive(_CONFIGURATION, archive_of({**own, **files}))

    def _connect(self, engine: Any, name: str, hosts: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Make a network for each two hosts, and return for each host those to the others."""
        between: dict[str, dict[str, Any]] = {host: {} for host in hosts}
        for one, other in combinations(hosts, 2):
            # Internal: it has no gateway, so published ports belong to the default network, and stay when
            # a node is disconnected from this one.
            network = engine.networks.create(
                f"{name}-{one}-{other}", driver="bridge", internal=True, labels={OWNER_LABEL: own_name()}
            )
            self._networks.append(network)
            between[one][other] = between[other][one] = network
        return between

    def _form(self) -> None:
        for node in self.nodes:
            node.boot()
        for node in self.nodes:
            node.wait_ready()
        self._wait_formed()

    def _wait_formed(self) -> None:
        for node in self.nodes:
            wait_until(
                lambda node=node: _sees(node, len(self.nodes)),  # type: ignore[misc]
                BOOT_PATIENCE,
                f"{node.name} sees {len(self.nodes)} nodes",
                why_not=node._last_lines,
                poll=timedelta(milliseconds=500),
            )


@contextmanager
def docker_cluster(
    *, environ: Mapping[str, str], size: int = 3, files: Mapping[str, str] | None = None
) -> Iterator[DockerCluster]:
    """Run a cluster; see :class:`DockerCluster`."""
    with closing(DockerCluster(environ, size=size, files=files)) as cluster:
        yield cluster


def _starts(node: ClusterNode) -> bool:
    try:
        node.start_app()
    except HarnessError:  # its Erlang node is not up yet
        return False
    return True


def _sees(node: ClusterNode, size: int) -> bool:
    try:
        return node.running_nodes() == size
    except BrokerUnavailable:
        return False


def _cluster_conf(hosts: Sequence[str]) -> str:
    nodes = "".join(
        f"cluster_formation.classic_config.nodes.{number} = rabbit@{host}\n"
        for number, host in enumerate(hosts, start=1)
    )
    return (
        "cluster_formation.peer_discovery_backend = classic_config\n"
        f"{nodes}"
        f"cluster_formation.target_cluster_size_hint = {len(hosts)}\n"
        # So that a partition is noticed in the time of a test; the default is a minute.
        "net_ticktime = 8\n"
    )


def archive_of(files: Mapping[str, str]) -> bytes:
    """Return files as a tar archive, readable by everybody."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content.encode()), 0o644
            archive.addfile(entry, io.BytesIO(content.encode()))
    return packed.getvalue()
