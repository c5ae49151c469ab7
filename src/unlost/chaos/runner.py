"""One chaos run: load under faults → heal → drain from everywhere → check."""

from __future__ import annotations

import json
import math
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from unlost.broker.management import Management
from unlost.chaos import checker
from unlost.chaos.checker import Checker, Judgement
from unlost.chaos.clock import OFFSET_VARIABLE, find_faketime, offset_ns, run_clock
from unlost.chaos.container import WorkerImage, container_maker
from unlost.chaos.crashes import FOLDER_VARIABLE, CrashPoints
from unlost.chaos.crew import Command, Crew, Maker, WorkerProcess
from unlost.chaos.declare import MANAGEMENT_VARIABLE
from unlost.chaos.drain import record_residue, wait_until_drained
from unlost.chaos.history import History, Recorder, fresh_file, load
from unlost.chaos.nemesis import Conductor, Nemesis, Scene, Schedule
from unlost.chaos.report import Figures, figures
from unlost.chaos.subject import BROKER_VARIABLE, FOREIGN_VARIABLES
from unlost.errors import HarnessError
from unlost.testing.brokers import Broker, DockerCluster, Vhost
from unlost.testing.proxy import Link
from unlost.testing.stores import StoreServer

#: RabbitMQ 3.10 may lose the leader of a quorum queue that was declared moments before a SIGKILL.
GRACE = timedelta(seconds=5)

#: Where unlost finds its store, and where examples and users' apps may look, too.
STORE_VARIABLE = "UNLOST_STORE"


def rules(nemeses: Sequence[Nemesis] = ()) -> tuple[Checker, ...]:
    """Return the checkers of a run: the promise, and that every nemesis struck a running task."""
    return (
        checker.NothingLost(),
        checker.NothingFromNowhere(),
        checker.EffectsOnce(),
        checker.ExclusiveEnd(),
        checker.Conserved(),
        checker.NoBystanders(),
        active(nemeses),
    )


def active(nemeses: Sequence[Nemesis]) -> checker.Active:
    """Return the rule that a run under these nemeses was not idle."""
    return checker.Active(frozenset(nemesis.name for nemesis in nemeses))


@dataclass(frozen=True, kw_only=True)
class Programs:
    """Modules that a run starts as processes; others than these for what is no Celery application.

    They take the same arguments and variables, write the same history, and a worker says that it is ready.

    Attributes:
        declare: Prepares the broker, and prints the queues of letters as a JSON list.
        client: Publishes.
        worker: Works until its input ends.
    """

    declare: str = "unlost.chaos.declare"
    client: str = "unlost.chaos.client"
    worker: str = "unlost.chaos.worker"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run.

    Attributes:
        app: Import path of the Celery app, ``module:attribute``.
        workload: Import path of the workload's class, ``module:Class``.
        options: Its fields.
        environment: Of clients and workers; the broker and the store are added.
        nemeses: What injures the system meanwhile.
        schedule: When each of them does; drawn from the seed when not given.
        messages: How many to publish.
        rate: Messages a second.
        client_threads: How many publish at once.
        workers: Worker processes.
        concurrency: Pool processes of each.
        seed: Of the nemeses.
        patience: For the load beyond its usual time, and again for the drain.
        letters: Names of further queues that hold letters, beside those of the app's topology.
        programs: What is started.
        image: What the workers are containers of; ``None`` for processes on this host.
    """

    app: str
    workload: str
    options: Mapping[str, Any]
    environment: Mapping[str, str] = field(repr=False)
    nemeses: Sequence[Nemesis] = ()
    schedule: Schedule | None = None
    messages: int
    rate: float
    client_threads: int = 1
    workers: int = 2
    concurrency: int = 2
    seed: int = 1
    patience: timedelta = timedelta(minutes=5)
    letters: Collection[str] = ()
    programs: Programs = Programs()
    image: WorkerImage | None = None

    @property
    def span(self) -> timedelta:
        """Return how long the load takes if nothing holds it up.

        Raises:
            HarnessError: There is no load.
        """
        if self.rate <= 0 or self.messages < 1:
            raise HarnessError("a run needs messages, and a rate of so many a second")
        return timedelta(seconds=math.ceil(self.messages / self.rate))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where to run.

    Attributes:
        vhost: An empty vhost; its URLs are the broker's own.
        broker: The broker, if it is a single one.
        cluster: The cluster, if it is one.
        store: A store server of ours, if there is one.
        store_url: Of an empty database; ``None`` leaves it to the environment.
    """

    vhost: Vhost
    broker: Broker | None = None
    cluster: DockerCluster | None = None
    store: StoreServer | None = None
    store_url: str | None = field(default=None, repr=False)

    @property
    def can(self) -> frozenset[str]:
        """Return what nemeses may need and this place has."""
        everything = frozenset({"kill", "restart", "pause", "control", "cluster"})
        of_broker = everything if self.cluster else self.broker.can if self.broker else frozenset()
        store = frozenset({"store"} if self.store else ())
        of_workers = frozenset({"crash_points", "faketime"} if find_faketime() else {"crash_points"})
        return of_broker | store | of_workers

    def describe(self) -> str:
        """Return version, provider and number of the nodes."""
        node = self.cluster.nodes[0] if self.cluster else self.broker
        if node is None:
            return "unknown"
        version = ".".join(map(str, node.version))
        nodes = len(self.cluster.nodes) if self.cluster else 1
        return f"{version} ({node.provider}, {nodes} node{'s' if nodes > 1 else ''})"

    def log_tail(self) -> str:
        """Return the end of the log of each node."""
        nodes = self.cluster.nodes if self.cluster else [self.broker] if self.broker else []
        return "\n".join(f"{node!r}:\n{node.log_tail()}" for node in nodes)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    phase: str
    published: int
    messages: int
    faults: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended."""

    history: History
    judgement: Judgement
    figures: Figures
    schedule: Schedule


OnProgress = Callable[[Progress], None]


class Run:
    """A chaos run in a folder of its own, which keeps its history and logs.

    Args:
        plan: What to run.
        place: Where.
        folder: For history and logs.
        on_progress: Told at every step.

    Raises:
        HarnessError: The place lacks what a nemesis needs.
    """

    def __init__(
        self, plan: Plan, place: Place, folder: Path, on_progress: OnProgress = lambda _: None
    ) -> None:
        _refuse_impossible(plan, place)
        self._plan = plan
        self._place = place
        self._folder = folder
        self._history = folder / "history"
        self._logs = folder / "logs"
        self._crash_points = CrashPoints(folder / "crashes") if _needed("crash_points", plan) else None
        self._on_progress = on_progress
        self._published = 0
        self._offset = offset_ns()
        self._conductor: Conductor | None = None
        self.schedule = plan.schedule or Schedule.draw(plan.nemeses, plan.seed, plan.span)
        self._logs.mkdir(parents=True)
        if self._crash_points is not None:
            self._crash_points.folder.mkdir()

    def __call__(self) -> Result:
        """Run and judge.

        Raises:
            HarnessError: The rig failed: workers did not start, the load did not end in time.
        """
        letters = [*self._plan.letters, *self._declare()]
        declared = time.monotonic()
        file, now = fresh_file(self._history, "run"), run_clock(self._offset)
        with self._links() as links, Recorder(file, now_ns=now) as recorder:
            recorder.record("run", "info", "schedule", **self.schedule.to_json())
            with self._crew(links) as crew:
                crew.wait_ready()
                time.sleep(max(0.0, declared + GRACE.total_seconds() - time.monotonic()))
                with self._injuring(crew, links, recorder) as begun:
                    self._load(links, begun)
                self._tell("draining")
                self._drain(letters, crew, recorder)
            self._read(letters)
        self._tell("judging")
        history = load(self._history)
        judgement = checker.check(history, rules(self._plan.nemeses))
        return Result(
            history=history,
            judgement=judgement,
            figures=figures(judgement, history),
            schedule=self.schedule,
        )

    def _declare(self) -> list[str]:
        """Apply the app's topology, and return its queues of letters."""
        self._tell("declaring")
        command = self._command({}).start(
            self._plan.programs.declare,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bare=True,
        )
        output, errors = command.communicate()
        (self._logs / "declare.log").write_bytes(errors)
        if command.returncode:
            raise HarnessError(f"the app {self._plan.app} cannot be declared: {_end(errors)}")
        letters: list[str] = json.loads(output.splitlines()[-1])
        return letters

    def _command(self, links: Mapping[str, Link], whose: str = "") -> Command:
        vhost, plan = self._place.vhost, self._plan
        url = links[whose].url if whose in links else vhost.amqp_url.split(";", 1)[0]
        ours = {
            BROKER_VARIABLE: url,
            MANAGEMENT_VARIABLE: self._management_url,
            OFFSET_VARIABLE: str(self._offset),
        }
        store = links["store"].url if "store" in links else self._place.store_url
        ours |= {STORE_VARIABLE: store} if store else {}
        given = plan.image.environment if whose == "worker" and plan.image else plan.environment
        kept = {name: value for name, value in given.items() if name not in FOREIGN_VARIABLES}
        return Command(
            app=plan.app,
            workload=plan.workload,
            options=json.dumps(dict(plan.options)),
            history=self._history,
            environment=kept | ours,
        )

    @property
    def _management_url(self) -> str:
        cluster = self._place.cluster
        return cluster.management_url if cluster else self._place.vhost.management_url

    @contextmanager
    def _links(self) -> Iterator[Mapping[str, Link]]:
        """Stand in the links that a nemesis breaks; before a cluster they balance the load, too."""
        names = {name for nemesis in self._plan.nemeses for name in nemesis.link_names()}
        if self._place.cluster:
            names |= {"worker", "publisher"}
        with ExitStack() as stack:
            yield {name: stack.enter_context(Link(self._url_of(name))) for name in sorted(names)}

    def _url_of(self, link: str) -> str:
        if link != "store":
            return self._place.vhost.amqp_url
        url = self._place.store_url
        if self._place.store is None or url is None:
            raise HarnessError("the link of the store needs a store server of ours: a file has no link")
        return url

    @contextmanager
    def _crew(self, links: Mapping[str, Link]) -> Iterator[Crew]:
        plan = self._plan
        command = self._command(links, "worker")
        if self._crash_points is not None:
            crashes = {FOLDER_VARIABLE: str(self._crash_points.folder)}
            command = replace(command, environment={**command.environment, **crashes})
        with (
            self._maker() as make,
            Crew(
                command,
                size=plan.workers,
                concurrency=plan.concurrency,
                logs=self._logs,
                faketime=find_faketime() if _needed("faketime", plan) else None,
                make=make,
            ) as crew,
        ):
            yield crew

    def _maker(self) -> AbstractContextManager[Maker]:
        plan = self._plan
        if plan.image is None:
            return nullcontext(partial(WorkerProcess, module=plan.programs.worker))
        return container_maker(plan.image.name, self._folder, plan.environment)

    @contextmanager
    def _injuring(
        self, crew: Crew, links: Mapping[str, Link], recorder: Recorder
    ) -> Iterator[threading.Event]:
        place = self._place
        scene = Scene(
            crew=crew,
            vhost=place.vhost,
            recorder=recorder,
            broker=place.broker,
            cluster=place.cluster,
            store=place.store,
            links=links,
            crash_points=self._crash_points,
        )
        with Conductor(self.schedule, scene) as self._conductor:
            yield scene.begun

    def _load(self, links: Mapping[str, Link], begun: threading.Event) -> None:
        plan = self._plan
        with (self._logs / "client.log").open("wb") as log:
            client = self._command(links, "publisher").start(
                plan.programs.client,
                f"--messages={plan.messages}",
                f"--rate={plan.rate}",
                f"--threads={plan.client_threads}",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        patience = plan.span + plan.patience
        follower = threading.Thread(target=self._follow, args=(client, begun), name="unlost-run")
        follower.start()
        try:
            status = client.wait(patience.total_seconds())
        except subprocess.TimeoutExpired as exc:
            raise HarnessError(f"the load did not end within {patience}; see {self._logs}") from exc
        finally:
            client.kill()
            follower.join()
            if client.stdout is not None:
                client.stdout.close()
        if status != 0:
            raise HarnessError(f"the client ended with status {status}; see {self._logs / 'client.log'}")

    def _follow(self, client: subprocess.Popen[bytes], begun: threading.Event) -> None:
        """Count what the client has published."""
        for _ in client.stdout or ():
            begun.set()
            self._published += 1
            self._tell("load under faults")

    def _drain(self, letters: Collection[str], crew: Crew, recorder: Recorder) -> None:
        with Management(self._management_url, self._place.vhost.name) as management:
            if not wait_until_drained(management, letters, self._plan.patience):
                crew.tell_stacks()
            record_residue(management, letters, recorder)

    def _read(self, letters: Collection[str]) -> None:
        reader = self._command({}).start(
            "unlost.chaos.reader",
            *(f"--letters={queue}" for queue in letters),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        _, errors = reader.communicate()
        if reader.returncode:
            raise HarnessError(f"letters and effects cannot be read: {_end(errors)}")

    def _tell(self, phase: str) -> None:
        self._on_progress(
            Progress(
                phase=phase,
                published=self._published,
                messages=self._plan.messages,
                faults=self._conductor.strikes if self._conductor else 0,
            )
        )


#: What a nemesis needs and a place has not.
_WHERE_TO_HAVE = {
    "cluster": "a cluster: three nodes (nodes=3, --nodes 3)",
    "store": 'a store server of ours (store="postgresql" or another, --store postgresql)',
    "faketime": "libfaketime on this host",
}
_BROKER_OF_OURS = "a broker of ours, which UNLOST_BROKER_URL's is not"


def _needed(what: str, plan: Plan) -> bool:
    return any(what in nemesis.needs for nemesis in plan.nemeses)


def _refuse_impossible(plan: Plan, place: Place) -> None:
    if plan.image and _needed("faketime", plan):
        raise HarnessError("clocks can be set of workers that are processes of this host, not in containers")
    for nemesis in plan.nemeses:
        if lacking := nemesis.needs - place.can:
            told = sorted({_WHERE_TO_HAVE.get(each, _BROKER_OF_OURS) for each in lacking})
            raise HarnessError(f"{type(nemesis).__name__} needs {' and '.join(told)}")


def without_impossible(plan: Plan, place: Place) -> Plan:
    """Return the plan without what the place cannot have, such as a kill of an external broker."""
    return replace(plan, nemeses=[each for each in plan.nemeses if each.needs <= place.can])


def _end(errors: bytes, lines: int = 5) -> str:
    return "\n".join(errors.decode(errors="replace").strip().splitlines()[-lines:]) or "it said nothing"
