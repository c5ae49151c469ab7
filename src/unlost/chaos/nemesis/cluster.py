"""Injures a cluster: a node dies, stands still, is cut off; its queues lose their leader."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, Literal

from unlost.broker.management import Management
from unlost.chaos.nemesis.base import Injury, Nemesis, Scene
from unlost.errors import HarnessError
from unlost.testing.brokers import DockerCluster
from unlost.testing.brokers.cluster import ClusterNode


@dataclass(frozen=True, kw_only=True)
class _OnCluster(Nemesis):
    """A nemesis that strikes at one node of a cluster, and heals the cluster."""

    lasting: timedelta = timedelta(seconds=10)
    needs: ClassVar[frozenset[str]] = frozenset({"cluster"})

    def strike(self, injury: Injury, scene: Scene) -> None:
        """Injure, let it last, heal; returns when all nodes run together again."""
        cluster = _cluster_of(scene)
        with scene.turn():
            if scene.over.is_set():
                return
            node = self._victim(injury, scene, cluster)
            with scene.outage(self.name, target=node.name):
                try:
                    self._injure(node, cluster)
                    scene.last(self.lasting)
                finally:
                    cluster.heal()

    def _victim(self, injury: Injury, _scene: Scene, cluster: DockerCluster) -> ClusterNode:
        return injury.choose(cluster.nodes)

    @abstractmethod
    def _injure(self, node: ClusterNode, cluster: DockerCluster) -> None:
        """Injure a node."""


@dataclass(frozen=True, kw_only=True)
class KillNode(_OnCluster):
    """SIGKILL to one node."""

    name: ClassVar[str] = "kill_node"

    def _injure(self, node: ClusterNode, _cluster: DockerCluster) -> None:
        node.kill()


@dataclass(frozen=True, kw_only=True)
class PauseNode(_OnCluster):
    """One node stands still, long enough for the others to believe it dead, and goes on."""

    name: ClassVar[str] = "pause_node"

    def _injure(self, node: ClusterNode, _cluster: DockerCluster) -> None:
        node.pause()


@dataclass(frozen=True, kw_only=True)
class LeaderLoss(_OnCluster):
    """SIGKILL to the node that leads a work queue."""

    name: ClassVar[str] = "leader_loss"

    def _victim(self, injury: Injury, scene: Scene, cluster: DockerCluster) -> ClusterNode:
        return leader_of(injury, scene, cluster)

    def _injure(self, node: ClusterNode, _cluster: DockerCluster) -> None:
        node.kill()


@dataclass(frozen=True, kw_only=True)
class Partition(_OnCluster):
    """Nodes are cut off from each other, but not from their clients, who go on publishing to them.

    Of three nodes a cut round one leaves a majority of two and a minority of one. A ring leaves every node a
    majority, and no two nodes the same: of three it cuts one link, and the two ends of it disagree about who
    is there (Jepsen's ``majorities-ring``).

    Args:
        of: ``random`` cuts off any node, ``leader`` one that leads a queue; ``ring`` cuts one link of it.
    """

    of: Literal["random", "leader", "ring"] = "random"
    lasting: timedelta = timedelta(seconds=15)

    name: ClassVar[str] = "partition"

    def _victim(self, injury: Injury, scene: Scene, cluster: DockerCluster) -> ClusterNode:
        if self.of == "leader":
            return leader_of(injury, scene, cluster)
        return injury.choose(cluster.nodes)

    def _injure(self, node: ClusterNode, cluster: DockerCluster) -> None:
        nodes = cluster.nodes
        cut_off = [nodes[nodes.index(node) - 1]] if self.of == "ring" else []
        node.disconnect(*cut_off)


@dataclass(frozen=True, kw_only=True)
class RollingRestart(Nemesis):
    """Every node is stopped and started in an orderly way, one after the other, as on an upgrade."""

    name: ClassVar[str] = "rolling_restart"
    needs: ClassVar[frozenset[str]] = frozenset({"cluster"})

    def strike(self, _injury: Injury, scene: Scene) -> None:
        """Restart the nodes; each returns to the others before the next goes."""
        cluster = _cluster_of(scene)
        with scene.turn(), scene.outage(self.name):
            for node in cluster.nodes:
                with self._whole(cluster):
                    node.restart()

    @staticmethod
    @contextmanager
    def _whole(cluster: DockerCluster) -> Iterator[None]:
        try:
            yield
        finally:
            cluster.heal()


def leader_of(injury: Injury, scene: Scene, cluster: DockerCluster) -> ClusterNode:
    """Return a node that leads a queue; any node if no queue tells its leader.

    Raises:
        HarnessError: The leader is no node of the cluster.
    """
    with Management(scene.management_url, scene.vhost.name) as management:
        leaders = sorted({queue.leader for queue in management.queues() if queue.leader})
    if not leaders:
        return injury.choose(cluster.nodes)
    name = injury.choose(leaders)
    for node in cluster.nodes:
        if node.name == name:
            return node
    raise HarnessError(f"{name} leads a queue and is no node of the cluster")


def _cluster_of(scene: Scene) -> DockerCluster:
    if scene.cluster is None:
        raise HarnessError("there is no cluster to injure: ask for three nodes")
    return scene.cluster
