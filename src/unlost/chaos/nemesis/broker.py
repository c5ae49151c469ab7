"""Injures a broker that is ours: kills, restarts, pauses it, and takes away what it needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import ClassVar

from unlost.broker.management import Management
from unlost.chaos.nemesis.base import Injury, Nemesis, Scene
from unlost.errors import HarnessError
from unlost.testing.brokers import Broker
from unlost.testing.brokers.alarms import disk_alarm, memory_alarm
from unlost.topology.objects import OperatorPolicy


@contextmanager
def _nodes_turn(injury: Injury, scene: Scene) -> Iterator[Broker]:
    """Yield the node to injure, the only one or one of the cluster, while nobody else injures any."""
    with scene.turn():
        if scene.over.is_set():
            raise _TooLate
        if scene.cluster is not None:
            yield injury.choose(scene.cluster.nodes)
        elif scene.broker is not None:
            yield scene.broker
        else:
            raise HarnessError("there is no broker of ours to injure")


class _TooLate(Exception):
    """The load ended while another fault had its turn."""


class _OnNode(Nemesis):
    """A nemesis that strikes at one node."""

    def strike(self, injury: Injury, scene: Scene) -> None:
        """Injure, let it last, heal."""
        try:
            with _nodes_turn(injury, scene) as node:
                with scene.outage(self.name, target=repr(node)), self._injured(node):
                    scene.last(self.lasting)
                if scene.cluster is not None:
                    scene.cluster.heal()
        except _TooLate:
            return

    def _injured(self, node: Broker) -> AbstractContextManager[None]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class KillBroker(_OnNode):
    """SIGKILL to a node: what it had not written to disk is gone. It comes back on the same data."""

    name: ClassVar[str] = "kill_broker"
    needs: ClassVar[frozenset[str]] = frozenset({"kill", "restart"})

    @contextmanager
    def _injured(self, node: Broker) -> Iterator[None]:
        node.kill()
        try:
            yield
        finally:
            node.restart()


@dataclass(frozen=True, kw_only=True)
class RestartBroker(_OnNode):
    """An orderly stop and start of a node, as on an upgrade."""

    name: ClassVar[str] = "restart_broker"
    needs: ClassVar[frozenset[str]] = frozenset({"restart"})

    @contextmanager
    def _injured(self, node: Broker) -> Iterator[None]:
        node.restart()
        yield


@dataclass(frozen=True, kw_only=True)
class PauseBroker(_OnNode):
    """All processes of a node stand still; its connections stay open and nobody answers."""

    name: ClassVar[str] = "pause_broker"
    needs: ClassVar[frozenset[str]] = frozenset({"pause"})

    @contextmanager
    def _injured(self, node: Broker) -> Iterator[None]:
        node.pause()
        try:
            yield
        finally:
            node.resume()


@dataclass(frozen=True, kw_only=True)
class StopApp(_OnNode):
    """``rabbitmqctl stop_app``: RabbitMQ stops, the Erlang node stays."""

    name: ClassVar[str] = "stop_app"
    needs: ClassVar[frozenset[str]] = frozenset({"control"})

    @contextmanager
    def _injured(self, node: Broker) -> Iterator[None]:
        node.rabbitmqctl("stop_app")
        try:
            yield
        finally:
            node.rabbitmqctl("start_app")


@dataclass(frozen=True, kw_only=True)
class MemoryAlarm(_OnNode):
    """The memory alarm goes off: the broker reads from no publisher, of all nodes."""

    name: ClassVar[str] = "memory_alarm"
    needs: ClassVar[frozenset[str]] = frozenset({"control"})

    def _injured(self, node: Broker) -> AbstractContextManager[None]:
        return memory_alarm(node)


@dataclass(frozen=True, kw_only=True)
class DiskAlarm(_OnNode):
    """The disk alarm goes off: the broker reads from no publisher, of all nodes."""

    name: ClassVar[str] = "disk_alarm"
    needs: ClassVar[frozenset[str]] = frozenset({"control"})

    def _injured(self, node: Broker) -> AbstractContextManager[None]:
        return disk_alarm(node)


@dataclass(frozen=True, kw_only=True)
class CloseConnections(Nemesis):
    """An operator closes every connection of the vhost through the management API."""

    name: ClassVar[str] = "close_connections"

    def strike(self, _injury: Injury, scene: Scene) -> None:
        """Close those that the broker tells of."""
        with scene.turn(), Management(scene.management_url, scene.vhost.name) as management:
            closed = management.close_connections("closed by a chaos test")
        if closed:
            scene.struck(self.name, closed=closed)


@dataclass(frozen=True, kw_only=True)
class FillQueue(Nemesis):
    """A queue is full and refuses publishes for a while: an operator policy sets its length limit to 1.

    It takes only queues that refuse when they are full; one that drops its head would lose messages by
    its own declaration.

    Args:
        queue: Which; one of the work queues when not given.
    """

    queue: str | None = None

    name: ClassVar[str] = "fill_queue"

    def strike(self, injury: Injury, scene: Scene) -> None:
        """Set the limit, let it last, take it away."""
        with scene.turn(), Management(scene.management_url, scene.vhost.name) as management:
            queue = self.queue or injury.choose(_refusing(management))
            limit = OperatorPolicy(
                name="unlost-chaos-full",
                pattern=f"^{queue.replace('.', '[.]')}$",
                definition={"max-length": 1},
                apply_to="queues",
                priority=100,
            )
            with scene.outage(self.name, target=queue):
                management.put(limit)
                try:
                    scene.last(self.lasting)
                finally:
                    management.delete(limit)


@dataclass(frozen=True, kw_only=True)
class LoseBinding(Nemesis):
    """An operator removes the binding of a work queue by mistake, and puts it back.

    Args:
        queue: Which; one of the work queues when not given.
    """

    queue: str | None = None

    name: ClassVar[str] = "lose_binding"

    def strike(self, injury: Injury, scene: Scene) -> None:
        """Remove it, let it last, put it back."""
        with scene.turn(), Management(scene.management_url, scene.vhost.name) as management:
            queue = self.queue or injury.choose(_refusing(management))
            # The binding for what is published to it; the delay path's has another key.
            lost = [
                each
                for each in management.bindings()
                if each.destination == queue and each.routing_key == queue
            ]
            with scene.outage(self.name, target=queue):
                for binding in lost:
                    management.delete(binding)
                try:
                    scene.last(self.lasting)
                finally:
                    for binding in lost:
                        management.put(binding)


def _refusing(management: Management) -> list[str]:
    """Return the names of the work queues that refuse when they are full."""
    policies = {policy.name: policy.definition for policy in management.policies()}
    # The delay path's queues refuse, too, but nobody publishes to them by their name.
    named = {binding.routing_key for binding in management.bindings()}
    return sorted(
        queue.declared.name
        for queue in management.queues()
        # Before 4.1 the broker does not tell the merged policy.
        if (queue.effective_policy or policies.get(queue.policy or "", {})).get("overflow")
        == "reject-publish"
        and queue.declared.name in named
    )
