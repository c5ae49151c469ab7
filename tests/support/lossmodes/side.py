"""One side of a scenario: plain Celery or unlost, on a vhost of its own, with real workers."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import amqp
from amqp.exceptions import NotFound
from celery import Celery

from tests.support import apps
from tests.support.lossmodes.app import (
    BOTH,
    DEAD_LETTERS,
    EXCHANGE,
    HIGH,
    OTHER,
    PLAIN,
    QUEUES,
    WORK,
    make_app,
)
from tests.support.lossmodes.verdict import Evidence
from tests.support.workers import SOON, Bench
from unlost.broker.apply import apply
from unlost.broker.management import Management
from unlost.errors import HarnessError
from unlost.testing.brokers import Broker
from unlost.testing.proxy import Fault, Link
from unlost.testing.waiting import wait_until
from unlost.topology.model import Topology
from unlost.topology.objects import OperatorPolicy

TOPOLOGY: dict[str, Any] = {
    "name": EXCHANGE,
    "queues": {WORK: None, OTHER: None, HIGH: None},
    "delay": {"levels": 4},
}
LETTERS = (*(f"{queue}.dlq" for queue in QUEUES), f"{EXCHANGE}.unroutable")
#: A worker that does one thing at a time settles in the order of its queue.
ONE = "--concurrency=1"
ROUNDS = 3
FILLERS = 200
_CONNECTED = "Connected to amqp"
WARM = timedelta(seconds=5)
JSON = {"content_type": "application/json", "content_encoding": "utf-8"}


@dataclass(frozen=True, kw_only=True)
class Plain:
    """How plain Celery is set up.

    Attributes:
        hardening: In words: "defaults", or the settings of Celery's documentation that are used.
        conf: Celery's settings.
        declares: Whether it declares queues of its own; else Celery makes the default one.
        queues: Which queues it declares, and consumes.
        arguments: Their arguments.
        exchange_type: Of their exchange.
        dead_letters: Whether a dead-letter exchange and its queue are there.
    """

    hardening: str = "defaults"
    conf: Mapping[str, Any] = field(default_factory=dict)
    declares: bool = True
    queues: tuple[str, ...] = (WORK,)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    exchange_type: str = "direct"
    dead_letters: bool = False

    def and_(self, hardening: str = "", **changes: Any) -> Plain:
        """Return a setup that has more; conf and arguments are added to."""
        words = f"{self.hardening}, {hardening}" if self.hardening != "defaults" else hardening
        conf = {**self.conf, **changes.pop("conf", {})}
        arguments = {**self.arguments, **changes.pop("arguments", {})}
        return replace(
            self, hardening=words if hardening else self.hardening, conf=conf, arguments=arguments, **changes
        )


DEFAULTS = Plain()
LATE = DEFAULTS.and_("`task_acks_late`", conf={"task_acks_late": True})
REQUEUING = LATE.and_("`task_reject_on_worker_lost`", conf={"task_reject_on_worker_lost": True})
CONFIRMING = DEFAULTS.and_("`confirm_publish`", conf={"broker_transport_options": {"confirm_publish": True}})
WITH_LETTERS = LATE.and_(
    "`task_acks_on_failure=False`, a dead-letter queue",
    conf={"task_acks_on_failure": False},
    arguments={"x-dead-letter-exchange": DEAD_LETTERS},
    dead_letters=True,
)
#: What Celery's page on RabbitMQ says of quorum queues.
QUORUM = LATE.and_(
    "quorum queues as documented",
    conf={
        "broker_transport_options": {"confirm_publish": True},
        "task_default_queue_type": "quorum",
        "worker_detect_quorum_queues": True,
    },
    arguments={"x-queue-type": "quorum"},
    exchange_type="topic",
)


@dataclass
class Side(Bench):
    """Plain Celery or unlost under one scenario."""

    module: str = "tests.support.lossmodes.worker"
    plain: Plain | None = None
    broker: Broker | None = None
    proxy: Link | None = None
    refused: dict[str, Exception] = field(default_factory=dict)
    ended: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __str__(self) -> str:
        name = "unlost" if self.plain is None else "plain Celery"
        return f"{name}: runs {dict(self.runs())}, effects {dict(self.effects())}, refused {self.refused}"

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of workers: they reach the broker through the proxy."""
        url = self.proxy.url if self.proxy else self.vhost.amqp_url
        return {**super().environment, "CELERY_BROKER_URL": url, **self.settings}

    @cached_property
    def app(self) -> Celery:
        """The publisher's app, in this process; it reaches the broker directly."""
        return make_app({**self.environment, "CELERY_BROKER_URL": self.vhost.amqp_url})

    def send(self, task: str, label: str, *args: Any, **options: Any) -> None:
        """Publish a task as an application does; what raises is noted as refused."""
        try:
            self.app.tasks[task].apply_async((label, *args), **options)
        except Exception as exc:  # noqa: BLE001 - whatever it raises, nobody was told that it succeeded
            self.refused[label] = exc

    def send_raw(self, task: str, label: str, *args: Any, **headers: Any) -> None:
        """Publish as a client of another language may: no header but those given."""
        self.publish_raw(json.dumps([[label, *args], {}, {}]), {"task": task, **headers}, **JSON)

    def note(self, label: str) -> None:
        """Leave a trace that bodies may wait for."""
        with self._database() as connection:
            connection.execute("INSERT INTO runs (label) VALUES (?)", (label,))

    def runs(self) -> Counter[str]:
        """Return how often each body ran."""
        return self._count("SELECT label, count(*) FROM runs GROUP BY label")

    def effects(self) -> Counter[str]:
        """Return how often each effect happened."""
        return self._count("SELECT label, count(*) FROM effects GROUP BY label")

    def _count(self, query: str) -> Counter[str]:
        with self._database() as connection:
            return Counter(dict(connection.execute(query)))

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """Open the store without SQLAlchemy: it is asked twenty times a second."""
        connection = sqlite3.connect(self.folder / "store.sqlite", timeout=SOON.total_seconds())
        with closing(connection), connection:
            yield connection

    def wait_for(self, condition: Any, what: str, patience: timedelta = SOON) -> None:
        """Wait for something that the store, the broker or a process shows."""
        wait_until(condition, patience, what, why_not=lambda: f"{self}\n{self.logs()[-3000:]}")

    def wait_for_run(self, label: str, times: int = 1) -> None:
        """Wait until a body has begun so often."""
        self.wait_for(lambda: self.runs()[label] >= times, f"{label} runs")

    def logs(self) -> str:
        """Return what all workers have said."""
        return "\n".join(self.log(number) for number in range(len(self.workers)))

    def work_off(self) -> None:
        """Wait until a worker that does one thing at a time has settled what was queued before, or died."""
        for number in range(2):
            marker = f"marker-{number}-{len(self.runs())}"
            self.send_raw("t.effect", marker, id=marker)
            self.wait_for(lambda label=marker: self.has_died or self.runs()[label], f"{marker} runs")

    def give_back(self, queue: str) -> None:
        """Do to a queue's first message what a worker does that dies with it prefetched."""
        with self.channel() as channel:
            wait_until(lambda: channel.basic_get(queue), SOON, f"a message is in {queue}")

    def limit(self, queue: str, length: int = 1) -> None:
        """Let a queue hold no more than so many messages, by an operator's policy."""
        with Management(self.vhost.management_url, self.vhost.name) as management:
            management.put(_limit(queue, length))

    def unlimit(self, queue: str) -> None:
        """Take the limit away."""
        with Management(self.vhost.management_url, self.vhost.name) as management:
            management.delete(_limit(queue, 1))

    def fill(self, queue: str) -> None:
        """Publish to a queue until it refuses more."""
        with self.channel() as channel:
            channel.confirm_select()
            refused: list[int] = []
            channel.events["basic_nack"].add(lambda tag, _multiple: refused.append(tag))
            acked: list[int] = []
            channel.events["basic_ack"].add(lambda tag, _multiple: acked.append(tag))
            for number in range(FILLERS):
                headers = {"task": "t.effect", "id": f"filler-{number}"}
                body = json.dumps([[f"filler-{number}"], {}, {}])
                message = amqp.Message(body, application_headers=headers, delivery_mode=2, **JSON)
                channel.basic_publish(message, EXCHANGE, queue)
                while number >= len(acked) + len(refused):
                    channel.connection.drain_events(timeout=10)
                if refused:
                    return
        raise HarnessError(f"{queue} takes more than {FILLERS} messages")

    def cut(self) -> None:
        """Break the connections of all workers, and wait until they are made again."""
        before = self.logs().count(_CONNECTED)
        self._proxy.injure(Fault(kind="reset"))
        self._proxy.heal()
        self.wait_for(lambda: self.logs().count(_CONNECTED) > before, "the worker is connected again")

    def refuse(self) -> None:
        """Break the connections of all workers, and let nobody in."""
        self._proxy.injure(Fault(kind="reset"))

    def admit(self) -> None:
        """Let workers in again."""
        self._proxy.heal()

    @property
    def _proxy(self) -> Link:
        if self.proxy is None:
            raise HarnessError("this side has no proxy")
        return self.proxy

    def kill(self, worker: subprocess.Popen[bytes], by: signal.Signals = signal.SIGKILL) -> None:
        """End a worker and wait for its end."""
        worker.send_signal(by)
        self.see_dead(worker)

    def see_dead(self, worker: subprocess.Popen[bytes]) -> None:
        """Wait for a worker that the scenario itself ends."""
        worker.wait(SOON.total_seconds())
        self.ended.append(worker)

    @property
    def has_died(self) -> bool:
        """Whether a worker has ended that nobody was to end."""
        return any(worker.poll() is not None for worker in self.workers if worker not in self.ended)

    def evidence(self, left: Counter[str] | None = None) -> Evidence:
        """Return what can be seen now."""
        return Evidence(
            effects=self.effects(),
            letters=Counter(map(label_of, self.bodies(*self.letter_queues))),
            left=left or Counter(),
            refused=frozenset(self.refused),
            died=self.has_died,
        )

    def finish(self, labels: Collection[str]) -> Evidence:
        """End all workers and return what has become of the tasks.

        On unlost a copy of a task that has ended may still be there; it is worked off first, as it could have
        an effect of its own.
        """
        died = self.has_died
        for _ in range(ROUNDS):
            evidence = replace(self._look_into_queues(), died=died)
            ended = {*evidence.effects, *evidence.letters}
            if self.plain is not None or not ended & set(labels) & {*evidence.left}:
                break
            self.start(ONE)
            self.wait_for(lambda: not any(map(self.ready, QUEUES)), "all copies are delivered")
            self.work_off()
        return evidence

    def _look_into_queues(self) -> Evidence:
        if self.plain is None:
            # Acks of what has just ended are then sent before the worker goes.
            self.stop_warm()
        self.stop()
        with Management(self.vhost.management_url, self.vhost.name) as management:
            names = [each.declared.name for each in management.queues() if not each.exclusive]
        for name in set(names) & set(QUEUES):
            self.wait_for(lambda name=name: not self.consumers(name), f"{name} has no consumer")
        left = self.bodies(*(name for name in names if name not in self.letter_queues))
        return self.evidence(Counter(map(label_of, left)))

    def stop_warm(self) -> None:
        """Ask all workers to stop, and wait for a while."""
        running = [worker for worker in self.workers if worker.poll() is None]
        for worker in running:
            worker.terminate()
        for worker in running:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(WARM.total_seconds())

    def ready(self, queue: str) -> int:
        """Return how many messages a queue could deliver now."""
        with self.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).message_count)

    def consumers(self, queue: str) -> int:
        """Return how many consume a queue; 0 if it is gone."""
        try:
            with self.channel() as channel:
                return int(channel.queue_declare(queue, passive=True).consumer_count)
        except NotFound:
            return 0

    @property
    def letter_queues(self) -> tuple[str, ...]:
        """Return the queues in which an operator looks for dead letters."""
        if self.plain is None:
            return LETTERS
        return LETTERS[:1] if self.plain.dead_letters else ()

    def bodies(self, *queues: str) -> list[bytes]:
        """Return the bodies of what lies in some queues, and leave it there."""
        found: list[bytes] = []
        if not queues:
            return found
        with self.channel() as channel:
            for queue in queues:
                while (message := channel.basic_get(queue)) is not None:
                    body = message.body
                    found.append(body if isinstance(body, bytes) else body.encode())
        return found

    def redrive(self) -> None:
        """Send every dead letter back as it is, as an operator does."""
        with self.channel() as channel:
            while (message := channel.basic_get(f"{WORK}.dlq")) is not None:
                channel.basic_publish(message, EXCHANGE, WORK)
                channel.basic_ack(message.delivery_tag)

    def declare(self) -> None:
        """Put the topology on the vhost, again if need be."""
        if self.plain is None:
            with Management(self.vhost.management_url, self.vhost.name) as management:
                apply(Topology.load(self.folder / "topology.yaml"), management)
            return
        with self.channel() as channel:
            if self.plain.dead_letters:
                channel.exchange_declare(DEAD_LETTERS, "fanout", durable=True, auto_delete=False)
                channel.queue_declare(f"{WORK}.dlq", durable=True, auto_delete=False)
                channel.queue_bind(f"{WORK}.dlq", DEAD_LETTERS)
            channel.exchange_declare(EXCHANGE, self.plain.exchange_type, durable=True, auto_delete=False)
            for name in self.plain.queues if self.plain.declares else ():
                arguments = dict(self.plain.arguments)
                channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)
                channel.queue_bind(name, EXCHANGE, name)


def _limit(queue: str, length: int) -> OperatorPolicy:
    pattern = f"^{re.escape(queue)}$"
    return OperatorPolicy(
        name=f"limit {queue}", pattern=pattern, apply_to="queues", definition={"max-length": length}
    )


def label_of(body: bytes) -> str:
    """Return the label of a task message: its first argument; of what is no such message, its text."""
    try:
        return str(json.loads(body)[0][0])
    except (ValueError, LookupError, TypeError):
        return body[:80].decode(errors="replace")


@contextmanager
def side(
    broker: Broker,
    folder: Path,
    plain: Plain | None,
    settings: Mapping[str, str],
    conf: Mapping[str, Any],
    work_queue: Mapping[str, Any] | None = None,
) -> Iterator[Side]:
    """Set up a side on a fresh vhost; its workers are killed at the end.

    Args:
        broker: Shared with others.
        folder: For store and logs.
        plain: How plain Celery is set up; ``None`` for unlost.
        settings: Environment variables of workers and clients.
        conf: Celery's settings on both sides.
        work_queue: What unlost's topology says of the first queue.
    """
    folder.mkdir()
    topology = {**TOPOLOGY, "queues": {**TOPOLOGY["queues"], WORK: work_queue}}
    (folder / "topology.yaml").write_text(json.dumps(topology))
    environment = {**settings, BOTH: json.dumps(dict(conf))}
    if plain is not None:
        names = ("conf", "declares", "queues", "arguments", "exchange_type")
        environment[PLAIN] = json.dumps({name: getattr(plain, name) for name in names})
    with ExitStack() as stack:
        vhost = stack.enter_context(broker.fresh_vhost())
        proxy = stack.enter_context(Link(vhost.amqp_url))
        made = Side(vhost, folder, environment, plain=plain, broker=broker, proxy=proxy)
        stack.callback(made.stop)
        made.declare()
        app = made.app
        stack.callback(_close, app, is_plain=plain is not None)
        yield made


def _close(app: Celery, *, is_plain: bool) -> None:
    if not is_plain:
        apps.close(app)
        return
    for pool in (app.amqp.producer_pool, app.pool):
        pool.force_close_all()
    app.close()
