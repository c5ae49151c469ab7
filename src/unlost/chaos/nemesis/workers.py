"""Kills, stops and starves the processes of workers."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from unlost.chaos.crashes import CRASH
from unlost.chaos.nemesis.base import Injury, Nemesis, Scene
from unlost.errors import HarnessError
from unlost.tasks.crashpoints import Point

#: Of ten kills so many strike a pool child, a parent with its children, a whole process group.
_WEIGHTS = {"child": 7, "parent": 2, "group": 1}

#: How often to look whether an armed crash point was reached.
POLL = timedelta(milliseconds=50)


@dataclass(frozen=True, kw_only=True)
class KillWorkers(Nemesis):
    """SIGKILL to a pool child, to a worker's parent (its children follow), or to the whole group at once.

    Args:
        targets: Which of ``child``, ``parent`` and ``group``.
    """

    targets: Sequence[str] = ("child", "parent", "group")

    name: ClassVar[str] = "kill"
    usual_times: ClassVar[int] = 5

    def __post_init__(self) -> None:
        if not self.targets or not set(self.targets) <= _WEIGHTS.keys():
            raise ValueError(f"KillWorkers: targets are {', '.join(_WEIGHTS)}, not {self.targets!r}")

    def kinds(self) -> Sequence[str]:
        """Return each target as often as it is drawn."""
        return [target for target in self.targets for _ in range(_WEIGHTS[target])]

    def strike(self, injury: Injury, scene: Scene) -> None:
        """Kill a worker that is up; the crew replaces the dead as any process manager does.

        One that is still starting is spared: on a slow machine nothing else would ever happen.
        """
        families = {name: sorted(scene.crew.children(name)) for name in scene.crew.names}
        up = [name for name, children in families.items() if children]
        if not up:
            return
        worker = injury.choose(up)
        if injury.what == "child":
            pids = scene.crew.kill_child(worker, injury.choose(families[worker]))
        elif injury.what == "group":
            pids = scene.crew.kill_group(worker)
        else:
            pids = scene.crew.kill_parent(worker)
        if pids:
            scene.struck(self.name, pids=pids, worker=worker, target=injury.what)


@dataclass(frozen=True, kw_only=True)
class CrashAt(Nemesis):
    """SIGKILL to the next process whose delivery comes to a point between deliver and ack.

    :class:`KillWorkers` strikes wherever a process happens to be, mostly in a body; this hits the moments
    that last microseconds. A point that no delivery reaches while it is armed is passed over: ``decided``
    and ``published`` are only reached by what fails.

    Args:
        points: Of :class:`unlost.tasks.crashpoints.Point`, from which each strike draws one.
        lasting: How long a point stays armed at most.
    """

    points: Sequence[str] = tuple(Point)
    lasting: timedelta = timedelta(seconds=10)

    name: ClassVar[str] = CRASH
    needs: ClassVar[frozenset[str]] = frozenset({"crash_points"})
    usual_times: ClassVar[int] = 5

    def __post_init__(self) -> None:
        if not self.points or not set(self.points) <= set(Point):
            raise ValueError(f"CrashAt: points are {', '.join(Point)}, not {self.points!r}")

    def kinds(self) -> Sequence[str]:
        """Return the points."""
        return [str(point) for point in self.points]

    def strike(self, injury: Injury, scene: Scene) -> None:
        """Arm the point, and wait until a process has died there; what dies records it."""
        if scene.crash_points is None:
            raise HarnessError("the workers of this run do not look for crash points")
        scene.crash_points.arm(injury.what)
        try:
            patience = time.monotonic() + self.lasting.total_seconds()
            while scene.crash_points.is_armed(injury.what) and time.monotonic() < patience:
                if scene.over.wait(POLL.total_seconds()):
                    return
        finally:
            scene.crash_points.disarm(injury.what)


@dataclass(frozen=True, kw_only=True)
class StopWorkers(Nemesis):
    """SIGSTOP to a whole worker, and SIGCONT: it wakes up past heartbeat and lease and believes it is alive.

    Args:
        lasting: Longer than the lease and twice the heartbeat for the full effect.
    """

    lasting: timedelta = timedelta(seconds=20)

    name: ClassVar[str] = "stop_worker"

    def strike(self, injury: Injury, scene: Scene) -> None:
        """Stop, wait, continue; a worker that is up if there is one, else there would be nothing to stop."""
        up = [name for name in scene.crew.names if scene.crew.children(name)]
        worker = injury.choose(up or scene.crew.names)
        with scene.crew.stopped(worker) as pids:
            scene.struck(self.name, pids=pids, target=worker)
            scene.last(self.lasting)
        scene.healed(self.name, target=worker)


@dataclass(frozen=True, kw_only=True)
class ClockSkew(Nemesis):
    """The wall clock of one worker is wrong for a while, ahead or behind; its monotonic clock is not.

    Args:
        by: How far, in either direction.
    """

    by: timedelta = timedelta(minutes=2)
    lasting: timedelta = timedelta(seconds=5)

    name: ClassVar[str] = "skew_clock"
    needs: ClassVar[frozenset[str]] = frozenset({"faketime"})

    def kinds(self) -> Sequence[str]:
        """Return both directions."""
        return ("ahead", "behind")

    def strike(self, injury: Injury, scene: Scene) -> None:
        """Set it wrong, let it last, set it right."""
        worker = injury.choose(scene.crew.names)
        with scene.outage(self.name, target=worker, ahead=injury.what):
            scene.crew.set_ahead(worker, self.by if injury.what == "ahead" else -self.by)
            try:
                scene.last(self.lasting)
            finally:
                scene.crew.set_ahead(worker, timedelta(0))


@dataclass(frozen=True, kw_only=True)
class OutOfMemory(Nemesis):
    """Lets a pool child get no more memory: what it does next ends in ``MemoryError`` or in its death."""

    name: ClassVar[str] = "out_of_memory"

    def strike(self, injury: Injury, scene: Scene) -> None:
        """Set the limit of its address space below what it uses, and back."""
        children = sorted(scene.crew.children(injury.choose(scene.crew.names)))
        if not children:
            return
        pid = injury.choose(children)
        try:
            soft, hard = resource.prlimit(pid, resource.RLIMIT_AS)
            resource.prlimit(pid, resource.RLIMIT_AS, (1 << 20, hard))
        except ProcessLookupError:
            return
        except PermissionError as exc:
            raise HarnessError(f"the limits of process {pid} cannot be set: {exc}") from exc
        scene.struck(self.name, pids=[pid], target=str(pid))
        scene.last(self.lasting)
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_AS, (soft, hard))
        scene.healed(self.name, target=str(pid))
