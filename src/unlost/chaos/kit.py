"""What users call in their tests: ``chaos.run(...)`` and ``.check(...)``."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from unlost.chaos import checker
from unlost.chaos.checker import Checker, Judgement, Verdict
from unlost.chaos.container import WorkerImage, require_image
from unlost.chaos.failure import explain_failure
from unlost.chaos.history import History
from unlost.chaos.nemesis import Nemesis, Schedule
from unlost.chaos.places import Places
from unlost.chaos.report import Figures, figures, injuries
from unlost.chaos.runner import OnProgress, Plan, Programs, Run, active
from unlost.chaos.workload import Workload, options_of, path_of
from unlost.errors import Anomaly, HarnessError


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A run that is over, to be checked.

    Attributes:
        history: What happened.
        schedule: What the nemeses were to do, and the seed.
        folder: History and logs.
        repeat: The command that repeats the run.
        broker: Version of the broker, and how many nodes.
        broker_log: The end of the log of each node.
    """

    history: History = field(repr=False)
    schedule: Schedule
    folder: Path
    repeat: str
    broker: str = ""
    broker_log: str = field(default="", repr=False)
    _judgements: list[Judgement] = field(default_factory=list, repr=False)

    @property
    def injuries(self) -> Mapping[str, int]:
        """Return how often each nemesis struck."""
        return injuries(self.history)

    @property
    def is_checked(self) -> bool:
        """Whether somebody asked what it proves."""
        return bool(self._judgements)

    def judge(self, *checkers: Checker) -> Judgement:
        """Ask checkers, and always also whether the run was idle; raises nothing for what they find."""
        judgement = checker.check(self.history, [*checkers, active(self.schedule.nemeses)])
        self._judgements.append(judgement)
        return judgement

    def check(self, *checkers: Checker) -> Figures:
        """Ask checkers, and raise unless all of them call the history valid.

        A run that was idle proves nothing: every nemesis must have struck a running task.

        Args:
            *checkers: At least one.

        Returns:
            The figures of the run.

        Raises:
            ValueError: No checker is given.
            Anomaly: A checker found the history invalid. The message tells the life of what went wrong.
            HarnessError: The history proves nothing, neither good nor bad.
        """
        __tracebackhide__ = True
        if not checkers:
            raise ValueError("check() needs at least one checker, such as NothingLost()")
        judgement = self.judge(*checkers)
        if judgement.verdict is Verdict.VALID:
            return figures(judgement, self.history)
        error = Anomaly if judgement.verdict is Verdict.INVALID else HarnessError
        raise error(explain_failure(self, judgement))

    def summary(self) -> str:
        """Return one line of what was injured, how often, and what came of it."""
        shown = figures(self._judgements[-1], self.history) if self._judgements else None
        struck = ", ".join(f"{name} {times}" for name, times in sorted(self.injuries.items()))
        counts = (
            f"; {shown.confirmed} confirmed, {shown.executed} executed, {shown.dead_lettered} dead-lettered, "
            f"{shown.lost} lost, {shown.duplicate_effects} twice: {shown.verdict}"
            if shown
            else ""
        )
        seed = "" if self.schedule.seed is None else f"seed {self.schedule.seed}: "
        return f"{seed}{struck or 'nothing was injured'}{counts}"


class Chaos:
    """Makes runs; what the fixture ``chaos`` is.

    Args:
        places: Where.
        folder: For histories and logs, one folder a run.
        environ: Of clients and workers.
        seed: Of the nemeses.
        nodes: Of the broker.
        store: See :meth:`unlost.chaos.places.Places.place`.
        repeat: The command that repeats the run.
        on_progress: Told at every step.
    """

    def __init__(
        self,
        places: Places,
        folder: Path,
        *,
        environ: Mapping[str, str],
        seed: int = 1,
        nodes: int = 1,
        store: str | None = None,
        repeat: str = "",
        on_progress: OnProgress = lambda _: None,
    ) -> None:
        self._places = places
        self._folder = folder
        self._environ = environ
        self._seed = seed
        self._nodes = nodes
        self._store = store
        self._repeat = repeat
        self._on_progress = on_progress
        self.outcomes: list[Outcome] = []

    def run(
        self,
        *,
        app: str,
        workload: Workload,
        nemeses: Sequence[Nemesis] | Schedule,
        workers: int = 2,
        concurrency: int = 2,
        environment: Mapping[str, str] | None = None,
        letters: Collection[str] = (),
        patience: timedelta = timedelta(minutes=5),
        image: str | None = None,
        programs: Programs | None = None,
    ) -> Outcome:
        """Put a workload through an application while nemeses injure it, heal, drain, and read what came out.

        Workers and publishers are processes of their own with ``CELERY_BROKER_URL`` and ``UNLOST_STORE`` set
        to the run's, and import what this process can import. An app that unlost is installed on gets its
        topology applied.

        Args:
            app: Import path of the Celery app, ``module:attribute``.
            workload: What to publish, and how its effects are read.
            nemeses: What injures workers, broker, links and store meanwhile; by a schedule of the seed, or by
                this one (see :mod:`unlost.chaos.strategies`).
            workers: Worker processes.
            concurrency: Pool processes of each.
            environment: Further variables for them.
            letters: Queues that hold dead letters, beside those of the app's topology.
            patience: For the load beyond its usual time, and again for the drain.
            image: Run each worker in a container of this image, which has the app and ``unlost[chaos]`` in
                it; see :func:`unlost.testing.images.build_image`. It gets no variable of this process but
                those of ``environment``.
            programs: For what is no Celery application.

        Raises:
            ValueError: There is nobody to work.
            HarnessError: The rig failed, which says nothing about the application.
        """
        for name, count in {"workers": workers, "concurrency": concurrency}.items():
            if count < 1:
                raise ValueError(f"{name}={count}: a run needs at least one")
        if image is not None:
            require_image(image, self._environ)
        folder = self._folder / f"run-{len(self.outcomes) + 1}"
        folder.mkdir(parents=True)
        plan = Plan(
            app=app,
            workload=path_of(workload),
            options=options_of(workload),
            environment={
                **self._environ,
                # The user's modules are found as here, wherever pytest has put them on the path.
                "PYTHONPATH": ":".join(filter(None, sys.path)),
                **(environment or {}),
            },
            nemeses=nemeses.nemeses if isinstance(nemeses, Schedule) else nemeses,
            schedule=nemeses if isinstance(nemeses, Schedule) else None,
            messages=workload.messages,
            rate=workload.rate,
            client_threads=workload.threads,
            workers=workers,
            concurrency=concurrency,
            seed=self._seed,
            patience=patience,
            letters=letters,
            programs=programs or Programs(),
            image=None if image is None else WorkerImage(name=image, environment=environment or {}),
        )
        with self._places.place(folder, nodes=self._nodes, store=self._store) as place:
            result = Run(plan, place, folder, self._on_progress)()
            outcome = Outcome(
                history=result.history,
                schedule=result.schedule,
                folder=folder,
                repeat=self._repeat,
                broker=place.describe(),
                broker_log=place.log_tail(),
            )
        self.outcomes.append(outcome)
        return outcome
