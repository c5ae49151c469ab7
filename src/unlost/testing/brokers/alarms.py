"""Resource alarms of a broker that is ours: it reads from no publisher while one is on.

https://www.rabbitmq.com/docs/alarms
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from unlost.broker.management import Management
from unlost.testing.brokers.base import Broker
from unlost.testing.waiting import wait_until

_PATIENCE = timedelta(seconds=90)


@contextmanager
def memory_alarm(broker: Broker) -> Iterator[None]:
    """Keep the memory alarm on: the watermark is 0 inside the block, and the usual 0.6 after it."""
    with _alarm(broker, ("set_vm_memory_high_watermark", "0"), ("set_vm_memory_high_watermark", "0.6")):
        yield


@contextmanager
def disk_alarm(broker: Broker) -> Iterator[None]:
    """Keep the disk alarm on: no disk has as much free space as it asks for inside the block."""
    with _alarm(broker, ("set_disk_free_limit", "1000000GB"), ("set_disk_free_limit", "50MB")):
        yield


@contextmanager
def _alarm(broker: Broker, on: tuple[str, ...], off: tuple[str, ...]) -> Iterator[None]:
    broker.rabbitmqctl(*on)
    try:
        wait_until(lambda: _is_alarmed(broker), _PATIENCE, "the alarm is on")
        yield
    finally:
        broker.rabbitmqctl(*off)
        wait_until(lambda: not _is_alarmed(broker), _PATIENCE, "the alarm is off")


def _is_alarmed(broker: Broker) -> bool:
    with Management(broker.management_url, "/") as management:
        return dict(management.ask("health/checks/alarms") or {}).get("status") != "ok"
