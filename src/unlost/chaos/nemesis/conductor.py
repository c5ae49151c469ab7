"""Lets all nemeses of a run strike when it is time, each in a thread of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

from unlost.chaos.nemesis.base import Injury, Nemesis, Scene


@dataclass(frozen=True)
class Schedule:
    """All injuries of a run.

    Attributes:
        seed: From which they were drawn; ``None`` if it was from no seed.
        parts: Each nemesis with its injuries, in order of time.
    """

    seed: int | None
    parts: tuple[tuple[Nemesis, tuple[Injury, ...]], ...]

    @property
    def nemeses(self) -> tuple[Nemesis, ...]:
        """Return those that strike."""
        return tuple(nemesis for nemesis, _ in self.parts)

    @classmethod
    def draw(cls, nemeses: Sequence[Nemesis], seed: int, span: timedelta) -> Schedule:
        """Draw the injuries of every nemesis; one more nemesis does not change those of the others."""
        parts = [
            (nemesis, nemesis.schedule(f"{seed}/{number}/{nemesis.name}", span))
            for number, nemesis in enumerate(nemeses)
        ]
        return cls(seed, tuple(parts))

    def __str__(self) -> str:
        """Name it in a report."""
        return "the schedule" if self.seed is None else f"the schedule of seed {self.seed}"

    def lines(self) -> list[str]:
        """Return one line for each injury, in order of time."""
        planned = [(injury, nemesis) for nemesis, injuries in self.parts for injury in injuries]
        return [
            f"{injury.at.total_seconds():8.3f} s  {nemesis.name} {injury.what}".rstrip()
            for injury, nemesis in sorted(planned, key=lambda each: each[0].at)
        ]

    def to_json(self) -> Mapping[str, Any]:
        """Return it as plain values."""
        return {"seed": self.seed, "nemeses": [repr(each) for each, _ in self.parts], "lines": self.lines()}


class Conductor:
    """Strikes while it is entered. Leaving it ends the load: what is injured is healed, errors are raised.

    Args:
        schedule: What to do.
        scene: To whom.
    """

    def __init__(self, schedule: Schedule, scene: Scene) -> None:
        self._schedule = schedule
        self._scene = scene
        self._threads = ThreadPoolExecutor(max(1, len(schedule.parts)), thread_name_prefix="unlost-nemesis")
        self._running: list[Future[None]] = []
        self.strikes = 0

    def __enter__(self) -> Self:
        self._running = [
            self._threads.submit(self._run, nemesis, injuries) for nemesis, injuries in self._schedule.parts
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self._scene.over.set()
        self._scene.begun.set()
        self._threads.shutdown()
        for each in self._running:
            each.result()

    def _run(self, nemesis: Nemesis, injuries: Sequence[Injury]) -> None:
        self._scene.begun.wait()
        began = time.monotonic()
        for injury in injuries:
            wait = began + injury.at.total_seconds() - time.monotonic()
            if self._scene.over.wait(max(0.0, wait)):
                return
            self.strikes += 1
            nemesis.strike(injury, self._scene)
