"""A run of retries under kills: many messages that fail once, workers that die, a broker that restarts."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.support.retry_verdict import Start, Window, read_starts
from tests.support.workers import ROOT
from unlost.broker.apply import apply
from unlost.broker.management import Management
from unlost.chaos.clock import OFFSET_VARIABLE, offset_ns
from unlost.chaos.crew import Command, Crew
from unlost.chaos.history import Recorder, fresh_file
from unlost.chaos.nemesis import Conductor, KillWorkers, Scene, Schedule
from unlost.testing.brokers import Broker, Vhost
from unlost.testing.waiting import wait_until
from unlost.topology.model import Topology

QUEUES = ("r.one", "r.two", "r.three")
TOPOLOGY: dict[str, Any] = {"name": "r", "queues": dict.fromkeys(QUEUES), "delay": {"levels": 6}}

PUBLISH = """
import json, sys, time
from tests.support.retrying import later
messages, rate = json.load(sys.stdin)
begun = time.monotonic()
for index, (number, queue, arguments) in enumerate(messages):
    time.sleep(max(0, begun + index / rate - time.monotonic()))
    later.apply_async(args=(number, *arguments), queue=queue, priority=number % 3)
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is sent and what goes wrong.

    Attributes:
        messages: How many.
        rate: How many are sent each second.
        longest: Delays are between zero and this; every second one is of whole seconds.
        together: All retries come due within so long, at the end of ``longest``; ``None`` spreads them.
        peak: So many come due within one second, every other ``longest``; the others stay spread.
        kill_every: Mean time between kills of a child or a worker; ``None`` for none.
        restart_broker: Whether the broker is killed in the middle.
    """

    messages: int
    rate: float
    longest: timedelta
    together: timedelta | None = None
    peak: int = 0
    kill_every: timedelta | None = timedelta(seconds=1)
    restart_broker: bool = True
    workers: int = 2
    concurrency: int = 2
    patience: timedelta = timedelta(seconds=120)
    seed: int = 1


@dataclass(frozen=True)
class Outcome:
    """What began, what was sent where, how often something was killed, and when the broker was away."""

    starts: list[Start]
    sent: Mapping[int, str]
    kills: int
    outages: list[Window]


def run(plan: Plan, broker: Broker, folder: Path, store: str | None = None) -> Outcome:
    """Carry a plan out; returns when every message had its second attempt, or the patience is over."""
    with _declared(broker) as vhost:
        environment = _environment(vhost, folder, store or f"sqlite:///{folder / 'store.sqlite'}")
        command = Command(
            app="tests.support.retrying:app",
            workload="tests.support.retrying:Retries",
            options="{}",
            history=folder / "history",
            environment=environment,
        )
        with Crew(command, size=plan.workers, concurrency=plan.concurrency, logs=folder) as crew:
            crew.wait_ready()
            recorder = Recorder(fresh_file(folder / "history", "nemesis"))
            scene = Scene(crew=crew, vhost=vhost, recorder=recorder)
            return _run(plan, broker, scene, environment, folder)


def _run(plan: Plan, broker: Broker, scene: Scene, environment: Mapping[str, str], folder: Path) -> Outcome:
    messages = list(_messages(plan))
    sent = {number: queue for number, queue, _ in messages}
    nemeses = [] if plan.kill_every is None else [KillWorkers(every=plan.kill_every)]
    span = timedelta(seconds=plan.messages / plan.rate) + plan.longest + plan.patience
    outages: list[Window] = []
    starts = folder / "starts"
    with Conductor(Schedule.draw(nemeses, plan.seed, span), scene) as killer:
        client = threading.Thread(target=_publish, args=(messages, plan.rate, environment))
        client.start()
        scene.begun.set()
        if plan.restart_broker:
            _wait_for_retries(starts, len(sent) // 10, plan.patience)
            outages.append(_restart(broker))
        client.join()
    _wait_for_retries(starts, len(sent), plan.patience)
    return Outcome(read_starts(starts), sent, killer.strikes, outages)


def _messages(plan: Plan) -> Iterator[tuple[int, str, tuple[Any, ...]]]:
    chosen = random.Random(plan.seed)
    longest = plan.longest // timedelta(milliseconds=1)
    end = time.time() * 1000 + longest
    for number in range(plan.messages):
        queue = QUEUES[number % len(QUEUES)]
        if plan.together is not None:
            at = end - chosen.random() * (plan.together / timedelta(milliseconds=1))
            yield number, queue, (0, int(at))
        elif (at_ms := _peak_of(plan, number, end)) is not None:
            yield number, queue, (0, at_ms)
        else:
            after = chosen.randrange(longest + 1)
            yield number, queue, (after - after % 1000 if number % 2 else after,)


def _peak_of(plan: Plan, number: int, first_ms: float) -> int | None:
    """Return in the middle of which second a message is to come due, or ``None``; the others are spread.

    Of the messages that are sent within ``longest`` before a peak, as many as it has are picked evenly.
    """
    if not plan.peak:
        return None
    in_reach = round(plan.rate * plan.longest.total_seconds())
    peak, index = divmod(number, 2 * in_reach)
    if index >= in_reach or index * plan.peak // in_reach == (index + 1) * plan.peak // in_reach:
        return None
    # The client takes a while to start.
    second = first_ms // 1000 + 2 + 2 * peak * plan.longest.total_seconds()
    return int(second * 1000 + 500)


def _publish(messages: Any, rate: float, environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PUBLISH],
        input=json.dumps([messages, rate]),
        env=dict(environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise AssertionError(done.stderr)


def _wait_for_retries(starts: Path, many: int, patience: timedelta) -> None:
    def retried() -> int:
        return len({start.number for start in read_starts(starts) if start.attempt > 1})

    # What is missing then is for the verdict to say.
    deadline = time.monotonic() + patience.total_seconds()
    wait_until(
        lambda: time.monotonic() > deadline or retried() >= many,
        patience * 2,
        f"{many} messages are tried again",
        poll=timedelta(milliseconds=500),
    )


def _restart(broker: Broker) -> Window:
    begun = time.time() * 1000
    broker.kill()
    broker.restart()
    return Window(begun, time.time() * 1000)


@contextmanager
def _declared(broker: Broker) -> Iterator[Vhost]:
    with broker.fresh_vhost() as vhost:
        with Management(vhost.management_url, vhost.name) as management:
            apply(Topology.model_validate(TOPOLOGY), management)
        yield vhost


def _environment(vhost: Vhost, folder: Path, store: str) -> dict[str, str]:
    (folder / "starts").mkdir(parents=True)
    (folder / "history").mkdir()
    (folder / "topology.yaml").write_text(json.dumps(TOPOLOGY))
    return {
        **os.environ,
        "CELERY_BROKER_URL": vhost.amqp_url,
        "UNLOST_STORE": store,
        OFFSET_VARIABLE: str(offset_ns()),
        "UNLOST_CONNECT_PATIENCE": "60",
        "UNLOST_PUBLISH_PATIENCE": "120",
        "UNLOST_LEASE": "6",
        "TEST_TOPOLOGY": str(folder / "topology.yaml"),
        "TEST_STARTS": str(folder / "starts"),
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
