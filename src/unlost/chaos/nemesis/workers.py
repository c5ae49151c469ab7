"""Kills worker processes with SIGKILL, again and again."""

from __future__ import annotations

import random
import threading
from datetime import timedelta

from unlost.chaos.crew import Crew
from unlost.chaos.history import Recorder

#: Of ten kills, so many strike a pool child; the others take a parent with all its children.
CHILDREN_OF_TEN = 7


class KillWorkers:
    """Kills a pool child or a whole worker at every turn, chosen by a seeded generator.

    Args:
        crew: Whom to kill.
        recorder: Where each kill is written down, with the pids that died.
        every: Mean time between kills.
        seed: The same seed makes the same choices.
    """

    def __init__(self, crew: Crew, recorder: Recorder, *, every: timedelta, seed: int) -> None:
        self._crew = crew
        self._recorder = recorder
        self._every = every.total_seconds()
        self._random = random.Random(seed)  # noqa: S311 - choices that can be repeated, no secret
        self._healed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="unlost-nemesis", daemon=True)
        self.kills = 0

    def __enter__(self) -> KillWorkers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._healed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._healed.wait(self._every * self._random.uniform(0.5, 1.5)):
            self._strike()

    def _strike(self) -> None:
        name = self._random.choice(self._crew.names)
        children = sorted(self._crew.children(name))
        if children and self._random.randrange(10) < CHILDREN_OF_TEN:
            pids, target = self._crew.kill_child(self._random.choice(children)), "child"
        else:
            pids, target = self._crew.kill_parent(name), "parent"
        if pids:
            self.kills += 1
            self._recorder.record("nemesis", "info", "kill", pids=pids, worker=name, target=target)
