"""Faults of the way between workers and broker, under load; each returns when all is well again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from tests.support.workers import SOON
from unlost.broker.management import Management
from unlost.errors import BrokerUnavailable
from unlost.testing.brokers import Broker, Vhost
from unlost.testing.brokers.alarms import memory_alarm
from unlost.testing.proxy import HoleProxy
from unlost.testing.waiting import wait_until

#: How long a memory alarm lasts.
ALARM = timedelta(seconds=3)
#: How long a black hole lasts: until after the workers' heartbeats have told them.
HOLE = timedelta(seconds=30)


@dataclass(frozen=True)
class Scene:
    """What a fault needs: the broker, the vhost, and the proxy that the workers go through."""

    broker: Broker
    vhost: Vhost
    proxy: HoleProxy


Fault = Callable[[Scene], None]


def restart(scene: Scene) -> None:
    """Kill the broker and start it again; well when AMQP and management answer."""
    scene.broker.kill()
    scene.broker.restart()


def cut(scene: Scene) -> None:
    """Have the broker close every connection of the vhost, by its management API; well at once."""
    with Management(scene.vhost.management_url, scene.vhost.name) as management:
        connections = wait_until(
            lambda: _connections(management, scene.vhost), SOON, "connections are listed"
        )
        for name in connections:
            management._request("DELETE", f"connections/{name}")


def _connections(management: Management, vhost: Vhost) -> list[str]:
    try:
        return [
            str(each["name"])
            for each in management._request("GET", f"vhosts/{vhost.name}/connections").json()
        ]
    except (BrokerUnavailable, ValueError):
        return []


def black_hole(scene: Scene) -> None:
    """Lose every byte on the workers' way, for a while; then new connections are well, the old are lost."""
    with scene.proxy.hole():
        time.sleep(HOLE.total_seconds())


def alarm(scene: Scene) -> None:
    """Put the broker short of memory for a while."""
    with memory_alarm(scene.broker):
        time.sleep(ALARM.total_seconds())


#: Not of one node: broker restarts need a node of the test's own, and so does a memory alarm.
FAULTS: tuple[Fault, ...] = (restart, cut, black_hole, alarm)
