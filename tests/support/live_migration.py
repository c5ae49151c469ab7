"""A classic work queue that is migrated while clients publish and Celery workers run."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import amqp

from tests.support.forks import forks
from tests.support.migrating import management_of, plan_of, run_and_die
from tests.support.misbehaving_topology import TOPOLOGY
from tests.support.raw_amqp import open_channel
from tests.support.workers import ROOT, Bench
from unlost.broker.apply import apply
from unlost.broker.journal import Progress, create_journal, read_journal
from unlost.testing.brokers import Vhost
from unlost.topology.model import Topology
from unlost.topology.objects import Queue
from unlost.topology.replacement import QueueChange

OLD, NEW = "t.work", "t.work.v2"

_PUBLISH = """
from pathlib import Path
import time
number = 0
with Path({acknowledged!r}).open("a") as file:
    while not Path({stop!r}).exists():
        m.effect.delay(f"live-{{number}}")
        if number % 5 == 0:
            m.effect.apply_async((f"later-{{number}}",), countdown=3)
            file.write(f"later-{{number}}\\n")
        file.write(f"live-{{number}}\\n")
        file.flush()
        number += 1
        time.sleep({pause})
"""


@dataclass
class Live:
    """The bench, the migration's journal, and who publishes."""

    bench: Bench
    file: Path
    killed: int = 0
    backlog: int = 0
    publishers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def acknowledged(self) -> list[str]:
        """Return the labels of all tasks whose publish was acknowledged."""
        live = self.bench.folder / "acknowledged"
        return [*(f"old-{number}" for number in range(self.backlog)), *live.read_text().split()]

    @property
    def journey(self) -> Progress:
        """Return how far the migration has come."""
        return read_journal(self.file, self.bench.vhost.name)

    def fill(self, count: int) -> None:
        """Put a backlog of tasks into the old queue, as copies of one that the app published."""
        self.bench.call("m.effect.delay('pattern')")
        with open_channel(self.bench.vhost.amqp_url) as channel:
            pattern = channel.basic_get(OLD, no_ack=True)
            channel.tx_select()
            for number in range(count):
                channel._basic_publish(_copy(pattern, f"old-{number}"), "t", OLD)
                if number % 1000 == 999:
                    channel.tx_commit()
            channel.tx_commit()
        self.backlog = count

    def publish(self, pause: float) -> None:
        """Start a client that publishes tasks, some of them delayed, until it is stopped."""
        code = _PUBLISH.format(
            acknowledged=str(self.bench.folder / "acknowledged"),
            stop=str(self.bench.folder / "stop"),
            pause=pause,
        )
        command = [sys.executable, "-c", f"import tests.support.misbehaving as m\n{code}"]
        self.publishers.append(subprocess.Popen(command, env=self.bench.environment, cwd=ROOT))

    def stop_publishing(self) -> None:
        """Let the clients end in their own time."""
        (self.bench.folder / "stop").touch()
        for publisher in self.publishers:
            assert publisher.wait(120) == 0

    def migrate(self, deaths: Iterator[int], state: str, **options: Any) -> None:
        """Run the migration until it comes to its end, killing it each time at another point."""
        with forks("tests.support.migrating") as children:
            while True:
                done = run_and_die(children, self.bench.vhost, self.file, next(deaths), **options)
                if done.returncode == 0:
                    assert done.stdout.strip() == state
                    return
                assert done.returncode == -9, done.stderr
                self.killed += 1


def _copy(pattern: amqp.Message, label: str) -> amqp.Message:
    identity = str(uuid.uuid4())
    properties = dict(pattern.properties)
    headers = {**properties.pop("application_headers"), "id": identity, "root_id": identity}
    properties |= {"correlation_id": identity, "message_id": f"{identity}.0.1"}
    _, kwargs, embed = json.loads(pattern.body)
    return amqp.Message(json.dumps([[label], kwargs, embed]), application_headers=headers, **properties)


@contextmanager
def live_migration(vhost: Vhost, folder: Path) -> Iterator[Live]:
    """Yield a bench whose work queue is classic, and a plan to make a quorum queue of it."""
    declared = {**TOPOLOGY, "queues": {OLD: None, NEW: None}}
    (folder / "topology.yaml").write_text(json.dumps(declared))
    (folder / "acknowledged").touch()
    with management_of(vhost) as management:
        apply(Topology.load(folder / "topology.yaml"), management)
        routes = [each for each in management.bindings() if each.destination == OLD]
        with open_channel(vhost.amqp_url) as channel:
            channel.queue_delete(OLD)
        management.put(Queue(name=OLD, arguments={"x-queue-type": "classic"}))
        for route in routes:
            management.put(route)
    bench = Bench(vhost, folder, {"UNLOST_LEASE": "6"})
    live = Live(bench, folder / "journal")
    with create_journal(live.file, plan_of(vhost, QueueChange(source=OLD, target=NEW)), vhost.name):
        pass
    try:
        yield live
    finally:
        (folder / "stop").touch()
        for publisher in live.publishers:
            publisher.kill()
            publisher.wait()
        bench.stop()


#: For the workers to carry out what is left; generous, for a machine that does other things.
DRAIN_PATIENCE = timedelta(minutes=60)
