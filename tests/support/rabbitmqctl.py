"""``rabbitmqctl`` of a broker that a test has for itself."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import httpx

from unlost.broker.management import Management
from unlost.testing.brokers import Broker
from unlost.testing.brokers.docker import DockerBroker
from unlost.testing.brokers.local import LocalBroker
from unlost.testing.waiting import wait_until

_PATIENCE = timedelta(seconds=90)


def rabbitmqctl(broker: Broker, *arguments: str) -> None:
    """Run a command on a broker's node.

    Raises:
        RuntimeError: It failed; the message holds what it printed.
    """
    if isinstance(broker, DockerBroker):
        # By way of the providers' own handles: what only tests need is not worth a public method.
        code, output = broker._node.exec_run(["rabbitmqctl", *arguments])
    elif isinstance(broker, LocalBroker):
        specification = broker._node.specification
        program = Path(specification["server"][0]).with_name("rabbitmqctl")
        done = subprocess.run(
            [program, *arguments], env=specification["environ"], capture_output=True, timeout=60, check=False
        )
        code, output = done.returncode, done.stdout + done.stderr
    else:
        raise TypeError(f"{broker!r} is not ours to control")
    if code:
        raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {output.decode(errors='replace')}")


@contextmanager
def memory_alarm(broker: Broker) -> Iterator[None]:
    """Keep the broker's memory alarm on, so that it reads from no publisher."""
    rabbitmqctl(broker, "set_vm_memory_high_watermark", "0")
    try:
        wait_until(lambda: _is_alarmed(broker), _PATIENCE, "the memory alarm is on")
        yield
    finally:
        rabbitmqctl(broker, "set_vm_memory_high_watermark", "0.6")
        wait_until(lambda: not _is_alarmed(broker), _PATIENCE, "the memory alarm is off")


def _is_alarmed(broker: Broker) -> bool:
    with Management(broker.management_url, "/") as management:
        return management._request("GET", "health/checks/alarms").status_code != httpx.codes.OK
