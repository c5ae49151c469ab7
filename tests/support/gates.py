"""The gated app on a vhost: workers, a dependency to take down, and what the bodies left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.support import traces
from tests.support.workers import SOON, Bench
from unlost.broker.apply import apply
from unlost.broker.management import Management
from unlost.testing.brokers import Vhost
from unlost.testing.waiting import wait_until
from unlost.topology.model import Topology

QUEUES = ("g.bank", "g.printer", "g.sms", "g.other")
TOPOLOGY: dict[str, Any] = {"name": "g", "queues": dict.fromkeys(QUEUES), "delay": {"levels": 5}}


class Gated(Bench):
    """A bench of the gated app."""

    def take_down(self) -> None:
        """Have every attempt fail."""
        (self.folder / "traces" / "down").touch()

    def bring_back(self) -> None:
        """Have every attempt succeed."""
        (self.folder / "traces" / "down").unlink()

    def wait_for(self, condition: Any, what: str, patience: timedelta = SOON) -> None:
        """Wait for something that the bodies left behind, or the broker shows."""
        wait_until(
            condition,
            patience,
            what,
            why_not=lambda: (
                f"{len(self.paid())} paid, {self.failures()} failed, "
                f"{ {queue: self.depth(queue) for queue in QUEUES} }\n{self.log()[-3000:]}"
            ),
        )

    def traces(self, what: str) -> list[dict[str, Any]]:
        """Return what the bodies left behind."""
        return [line for line in traces.read(self.folder / "traces") if line["what"] == what]

    def depth(self, queue: str) -> int:
        """Return how many messages are ready in a queue: in nobody's hands."""
        with self.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).message_count)

    def paid(self) -> set[int]:
        """Return the numbers whose payment succeeded."""
        return {line["number"] for line in self.traces("pay") if not line["failed"]}

    def failures(self) -> int:
        """Return how many attempts failed."""
        return sum(line["failed"] for line in self.traces("pay"))


@contextmanager
def gated(vhost: Vhost, folder: Path, **settings: str) -> Iterator[Gated]:
    """Apply the topology and yield a bench; its workers are killed at the end."""
    (folder / "topology.yaml").write_text(json.dumps(TOPOLOGY))
    (folder / "traces").mkdir()
    with Management(vhost.management_url, vhost.name) as management:
        apply(Topology.model_validate(TOPOLOGY), management)
    settings |= {"TEST_FOLDER": str(folder / "traces")}
    made = Gated(vhost, folder, settings, module="tests.support.gated")
    try:
        yield made
    finally:
        made.stop()
