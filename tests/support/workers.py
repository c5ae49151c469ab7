"""Real workers for tests: the misbehaving app on a vhost, its ledger and traces, its dead letters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import amqp
from kombu import Connection
from sqlalchemy import create_engine, text

from tests.support.misbehaving_topology import TOPOLOGY
from unlost.broker.apply import apply
from unlost.broker.connection import open_connection
from unlost.broker.management import Management
from unlost.testing.brokers import Vhost
from unlost.testing.waiting import wait_until
from unlost.topology.model import Topology

ROOT = Path(__file__).parents[2]
#: A bound for a loaded machine; a wait ends as soon as what it waits for is there.
SOON = timedelta(seconds=90)


@dataclass
class Bench:
    """The misbehaving app on a vhost, with workers to start and traces to read."""

    vhost: Vhost
    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    #: The module whose ``app`` the workers run.
    module: str = "tests.support.misbehaving"
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def store(self) -> str:
        """Return the URL of the store: a file in the folder, unless the settings name another."""
        return self.settings.get("UNLOST_STORE") or f"sqlite:///{self.folder / 'store.sqlite'}"

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of workers and clients."""
        return {
            **os.environ,
            "CELERY_BROKER_URL": self.vhost.amqp_url,
            "UNLOST_STORE": self.store,
            "TEST_TOPOLOGY": str(self.folder / "topology.yaml"),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            # Whatever the tests run under: the streams of services have buffers, and these have locks.
            "PYTHONUNBUFFERED": "",
            **self.settings,
        }

    def start(self, *arguments: str, wait: bool = True, module: str | None = None) -> subprocess.Popen[bytes]:
        """Start a worker of the bench's module, or another; returns when it consumes."""
        log = self.folder / f"worker-{len(self.workers)}.log"
        with log.open("wb") as out:
            worker = subprocess.Popen(
                [*self.command(f"w{len(self.workers)}", module), "--concurrency=2", *arguments],
                env=self.environment,
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.STDOUT,
                # A process group of its own, so that a test can signal all of it.
                start_new_session=True,
            )
        self.workers.append(worker)
        if wait:
            wait_until(
                lambda: " ready." in log.read_text(), SOON, "the worker is ready", why_not=log.read_text
            )
        return worker

    def command(self, name: str, module: str | None = None) -> list[str]:
        """Return the command line of a worker of that name."""
        command = [sys.executable, "-m", "celery", "-A", f"{module or self.module}:app", "worker"]
        return [*command, "--loglevel=INFO", f"--hostname={name}@%h", "--without-gossip", "--without-mingle"]

    def log(self, number: int = 0) -> str:
        """Return what a worker has said."""
        return (self.folder / f"worker-{number}.log").read_text()

    def call(self, code: str) -> str:
        """Run code in a client process that has imported the app as ``m``; returns what it prints."""
        program = f"import {self.module} as m\n{code}"
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise AssertionError(done.stderr)
        return done.stdout.strip()

    def rows(self, query: str) -> list[Any]:
        """Return what a query finds in the store's database."""
        options = {"connect_args": {"timeout": 30}} if self.store.startswith("sqlite") else {}
        engine = create_engine(self.store, **options)
        try:
            with engine.connect() as connection:
                return list(connection.execute(text(query)).all())
        finally:
            engine.dispose()

    def runs(self) -> Counter[str]:
        """Return how often each body ran."""
        return Counter(row.label for row in self.rows("select label from runs"))

    def effects(self) -> Counter[str]:
        """Return how often each effect happened."""
        return Counter(row.label for row in self.rows("select label from effects"))

    def states(self) -> Counter[str]:
        """Return how many messages stand where."""
        return Counter(row.state for row in self.rows("select state from unlost_messages"))

    def wait_for(self, condition: Any, what: str, patience: timedelta = SOON) -> None:
        """Wait for something that the store or the broker shows."""
        wait_until(
            condition, patience, what, why_not=lambda: (self.runs(), self.states(), self.log()[-3000:])
        )

    def letters(self, queue: str = "t.work.dlq") -> list[tuple[dict[str, Any], bytes]]:
        """Return headers and bodies of all dead letters, and leave them where they are."""
        with self.channel() as channel:
            found = []
            while (message := channel.basic_get(queue)) is not None:
                body = message.body if isinstance(message.body, bytes) else message.body.encode()
                found.append((message.properties.get("application_headers") or {}, body))
            return found

    def publish_raw(self, body: bytes | str, headers: Mapping[str, Any], **properties: Any) -> None:
        """Publish whatever to the work queue."""
        with self.channel() as channel:
            channel.confirm_select()
            message = amqp.Message(body, application_headers=dict(headers), delivery_mode=2, **properties)
            channel.basic_publish(message, "t", "t.work")
            channel.wait(amqp.spec.Basic.Ack, timeout=10)

    def tear(self, task_id: str) -> None:
        """Cut off the end of the body of a message that waits in the work queue."""
        with self.channel() as channel:
            while (message := channel.basic_get("t.work")) is not None:
                headers = message.properties["application_headers"]
                if headers["id"] == task_id:
                    channel.basic_ack(message.delivery_tag)
                    kept = {name: message.properties[name] for name in ("content_type", "content_encoding")}
                    self.publish_raw(message.body[:-5], headers, **kept)
                    return
        raise AssertionError(f"{task_id} is not in the queue")

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """Open a channel; what is got and not acked goes back at its end."""
        patience = timedelta(seconds=10)
        connection = open_connection(
            Connection(self.vhost.amqp_url), connect_timeout=patience, patience=patience
        )
        try:
            yield connection.channel()
        finally:
            connection.close()

    def stop(self) -> None:
        """Kill all workers."""
        for worker in self.workers:
            worker.kill()
            worker.wait()


@contextmanager
def bench(
    vhost: Vhost,
    folder: Path,
    shape: Mapping[str, Any] = TOPOLOGY,
    module: str = Bench.module,
    /,
    **settings: str,
) -> Iterator[Bench]:
    """Apply the topology and yield a bench; its workers are killed at the end.

    Args:
        vhost: Where.
        folder: For store and logs.
        shape: The topology, as in YAML.
        module: The module whose ``app`` the workers run.
        **settings: Environment variables of workers and clients.
    """
    (folder / "topology.yaml").write_text(json.dumps(shape))
    topology = Topology.load(folder / "topology.yaml")
    with Management(vhost.management_url, vhost.name) as management:
        apply(topology, management)
    made = Bench(vhost, folder, settings, module)
    try:
        yield made
    finally:
        made.stop()
