"""One chaos run: load under faults → heal → drain from everywhere → check."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from unlost.broker.management import Management
from unlost.chaos import checker
from unlost.chaos.checker import Judgement
from unlost.chaos.crew import Command, Crew
from unlost.chaos.drain import record_effects, record_letters, record_residue, wait_until_drained
from unlost.chaos.history import History, Recorder, fresh_file, load
from unlost.chaos.nemesis.broker import restart_broker
from unlost.chaos.nemesis.workers import KillWorkers
from unlost.chaos.report import Figures, figures
from unlost.chaos.workload import Workload, make
from unlost.errors import HarnessError
from unlost.testing.brokers import Broker, Vhost

CHECKERS = (
    checker.NothingLost(),
    checker.NothingFromNowhere(),
    checker.EffectsOnce(),
    checker.ExclusiveEnd(),
    checker.Active(),
)


#: RabbitMQ 3.10 may lose the leader of a quorum queue that was declared moments before a SIGKILL.
GRACE = timedelta(seconds=5)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run.

    Attributes:
        workload: ``module:Class``, importable in the environment.
        options: Its options.
        environment: Of clients and workers: broker and store URL among it.
        letters: Names of the queues that hold letters.
        messages: How many to publish.
        rate: Messages a second; 0 is as fast as they go.
        client_threads: How many publish at once.
        workers: Worker processes.
        concurrency: Pool processes of each.
        kill_every: Mean time between kills; ``None`` for none.
        restart_broker_at: Part of the messages after which the broker is killed; ``None`` for never.
        seed: Of the nemesis.
        patience: For the load, and again for the drain.
    """

    workload: str
    options: Mapping[str, Any]
    environment: Mapping[str, str] = field(repr=False)
    letters: Collection[str]
    messages: int
    rate: float = 0.0
    client_threads: int = 1
    workers: int = 2
    concurrency: int = 2
    kill_every: timedelta | None = timedelta(seconds=1)
    restart_broker_at: float | None = 0.5
    seed: int = 1
    patience: timedelta = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    phase: str
    published: int
    messages: int
    kills: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended."""

    history: History
    judgement: Judgement
    figures: Figures


OnProgress = Callable[[Progress], None]


class Run:
    """A chaos run in a folder of its own, which keeps its history and logs.

    Args:
        plan: What to run.
        broker: The broker, for the nemesis.
        vhost: Where the messages go.
        folder: For history and logs.
        on_progress: Told at every step.
    """

    def __init__(
        self,
        plan: Plan,
        broker: Broker,
        vhost: Vhost,
        folder: Path,
        on_progress: OnProgress = lambda _: None,
    ) -> None:
        self._plan = plan
        self._broker = broker
        self._vhost = vhost
        self._history = folder / "history"
        self._logs = folder / "logs"
        self._on_progress = on_progress
        self._published = 0
        self._nemesis: KillWorkers | None = None
        self._began = time.monotonic()
        self._logs.mkdir(parents=True)

    def __call__(self) -> Result:
        """Run and judge.

        Raises:
            HarnessError: The rig failed: workers did not start, the load did not end in time.
        """
        plan = self._plan
        workload = make(plan.workload, plan.options)
        with Recorder(fresh_file(self._history, "run")) as recorder, self._crew() as crew:
            crew.wait_ready()
            with self._killing(crew, recorder):
                self._load(recorder)
            self._tell("draining")
            self._drain(workload, crew, recorder)
        self._tell("judging")
        history = load(self._history)
        judgement = checker.check(history, CHECKERS)
        return Result(
            history=history,
            judgement=judgement,
            figures=figures(judgement, history, per_message=workload.per_message),
        )

    def _command(self) -> Command:
        return Command(
            workload=self._plan.workload,
            options=json.dumps(dict(self._plan.options)),
            history=self._history,
            environment=self._plan.environment,
        )

    def _crew(self) -> Crew:
        plan = self._plan
        return Crew(self._command(), size=plan.workers, concurrency=plan.concurrency, logs=self._logs)

    @contextmanager
    def _killing(self, crew: Crew, recorder: Recorder) -> Iterator[None]:
        if self._plan.kill_every is None:
            yield
            return
        with KillWorkers(crew, recorder, every=self._plan.kill_every, seed=self._plan.seed) as nemesis:
            self._nemesis = nemesis
            yield

    def _load(self, recorder: Recorder) -> None:
        plan = self._plan
        with (self._logs / "client.log").open("wb") as log:
            client = self._command().start(
                "unlost.chaos.client",
                f"--messages={plan.messages}",
                f"--rate={plan.rate}",
                f"--threads={plan.client_threads}",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        with ThreadPoolExecutor(2, thread_name_prefix="unlost-run") as helpers:
            following = helpers.submit(self._follow, client, recorder, helpers)
            try:
                status = client.wait(plan.patience.total_seconds())
            except subprocess.TimeoutExpired as exc:
                raise HarnessError(f"the load did not end within {plan.patience}; see {self._logs}") from exc
            finally:
                client.kill()
                restarting = following.result()
                if client.stdout is not None:
                    client.stdout.close()
            # The broker is healed before anything is drained, and a failure to do so ends the run.
            if restarting is not None:
                restarting.result()
        if status != 0:
            raise HarnessError(f"the client ended with status {status}; see {self._logs / 'client.log'}")

    def _follow(
        self, client: subprocess.Popen[bytes], recorder: Recorder, helpers: Executor
    ) -> Future[None] | None:
        """Count what the client has published, and restart the broker when it is time."""
        restart_at, restarting = self._plan.restart_broker_at, None
        for _ in client.stdout or ():
            self._published += 1
            self._tell("load under faults")
            if restart_at is not None and self._published >= restart_at * self._plan.messages:
                restart_at = None
                restarting = helpers.submit(self._restart_broker, recorder)
        return restarting

    def _restart_broker(self, recorder: Recorder) -> None:
        time.sleep(max(0.0, self._began + GRACE.total_seconds() - time.monotonic()))
        restart_broker(self._broker, recorder)

    def _drain(self, workload: Workload, crew: Crew, recorder: Recorder) -> None:
        plan = self._plan
        with Management(self._vhost.management_url, self._vhost.name) as management:
            if not wait_until_drained(management, plan.letters, plan.patience):
                crew.tell_stacks()
            record_residue(management, plan.letters, recorder)
        record_letters(self._vhost.amqp_url, plan.letters, workload, recorder)
        record_effects(workload, recorder)

    def _tell(self, phase: str) -> None:
        kills = self._nemesis.kills if self._nemesis else 0
        self._on_progress(
            Progress(phase=phase, published=self._published, messages=self._plan.messages, kills=kills)
        )
