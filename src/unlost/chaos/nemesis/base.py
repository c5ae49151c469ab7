"""What a nemesis is: a schedule drawn from a seed, and how it strikes at a scene."""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

from unlost.chaos.crashes import CrashPoints
from unlost.chaos.crew import Crew
from unlost.chaos.history import Recorder
from unlost.errors import HarnessError
from unlost.testing.brokers import Broker, DockerCluster, Vhost
from unlost.testing.proxy import Link
from unlost.testing.stores import StoreServer

T = TypeVar("T")

#: No fault before this part of the load, nor, of those whose number is given, after the rest of it.
FIRST, LAST = 0.1, 0.8

#: Between the end of one fault of the broker and the begin of the next.
BREATH = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Injury:
    """One planned injury; a value, so that a schedule can be shown and compared.

    Attributes:
        at: When, counted from the begin of the load.
        what: Which kind of it, in the words of its nemesis; empty if there is one only.
        draw: In [0, 1); chooses among the targets that there are when it strikes.
    """

    at: timedelta
    what: str
    draw: float

    def choose(self, candidates: Sequence[T]) -> T:
        """Return the candidate that the draw falls on.

        Raises:
            HarnessError: There is none.
        """
        if not candidates:
            raise HarnessError(f"nothing to choose from for the injury at {self.at}")
        return candidates[int(self.draw * len(candidates))]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What can be injured in a run, and where it is written down.

    Attributes:
        crew: The workers.
        vhost: Where the run's messages go; its URLs are the broker's own, past every link.
        recorder: Of the nemeses.
        broker: A single broker of ours.
        cluster: A cluster of ours.
        store: A store server of ours.
        links: Links that can be broken, by whose they are: ``worker``, ``publisher``, ``store``.
        crash_points: Where the workers die on demand, if they look.
        begun: Set when the first message is published: injuries are counted from there.
        over: Set when the load is over: whatever still waits then heals.
    """

    crew: Crew
    vhost: Vhost
    recorder: Recorder
    broker: Broker | None = None
    cluster: DockerCluster | None = None
    store: StoreServer | None = None
    links: Mapping[str, Link] = field(default_factory=dict)
    crash_points: CrashPoints | None = None
    begun: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def management_url(self) -> str:
        """Return the management API of the broker, or of a node of the cluster that answers."""
        return self.cluster.management_url if self.cluster else self.vhost.management_url

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Have broker or cluster for oneself: two faults at once could not be told apart, nor healed.

        The next has its turn when the system has had time to work again: a fault that strikes an idle system
        proves nothing.
        """
        with self._turn:
            yield
            self.last(BREATH)

    def struck(self, name: str, **facts: Any) -> None:
        """Record an injury that needs no healing, or one that begins."""
        self.recorder.record("nemesis", "info", name, **facts)

    def healed(self, name: str, **facts: Any) -> None:
        """Record the end of an injury."""
        self.recorder.record("nemesis", "ok", name, **facts)

    @contextmanager
    def outage(self, name: str, **facts: Any) -> Iterator[None]:
        """Record an injury that lasts as long as the block, unless the block raises."""
        self.struck(name, **facts)
        yield
        self.healed(name, target=facts.get("target"))

    def last(self, time: timedelta) -> None:
        """Let an injury last; shorter if the load ends."""
        self.over.wait(time.total_seconds())


@dataclass(frozen=True, kw_only=True)
class Nemesis(ABC):
    """Injures one kind of thing, again and again.

    A nemesis heals what it has injured before it goes on, and at the end of the load at the latest. When
    the process dies that runs it, what it injured dies, too: workers, servers and links belong to it.

    Args:
        every: Mean time between two injuries; each pause is between half of it and one and a half.
        times: So many injuries instead, each in its own part of the load.
        lasting: How long each lasts, for those that last.

    Attributes:
        name: What its operations are called in the history.
        needs: What it can only be used with: ``control``, ``kill``, ``pause`` or ``restart`` of a broker,
            ``cluster``, ``store``, ``faketime``, ``crash_points``.
    """

    every: timedelta | None = None
    times: int | None = None
    lasting: timedelta = timedelta(seconds=3)

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    #: What it does when neither ``every`` nor ``times`` is given.
    usual_times: ClassVar[int] = 1

    def kinds(self) -> Sequence[str]:
        """Return the kinds of injury to draw from."""
        return ("",)

    def link_names(self) -> Sequence[str]:
        """Return the links that must be there for it."""
        return ()

    def schedule(self, seed: str, span: timedelta) -> tuple[Injury, ...]:
        """Draw the injuries of one load; the same seed draws the same.

        Args:
            seed: Any text.
            span: How long the load will be.

        Raises:
            ValueError: ``every`` and ``times`` are both given, or not positive.
        """
        if self.every is not None and self.times is not None:
            raise ValueError(f"{type(self).__name__}: give every or times, not both")
        if (self.times is not None and self.times < 1) or (
            self.every is not None and self.every <= timedelta()
        ):
            raise ValueError(f"{type(self).__name__}: every and times must be more than zero")
        rng = random.Random(seed)  # noqa: S311 - choices that can be repeated, no secret
        moments = self._paced(rng, self.every, span) if self.every else self._spread(rng, span)
        return tuple(Injury(at, rng.choice(self.kinds()), rng.random()) for at in moments)

    def _paced(self, rng: random.Random, every: timedelta, span: timedelta) -> Iterator[timedelta]:
        at = every * rng.uniform(0.5, 1.5)
        while at < span:
            yield _rounded(at)
            at += every * rng.uniform(0.5, 1.5)

    def _spread(self, rng: random.Random, span: timedelta) -> Iterator[timedelta]:
        times = self.times or self.usual_times
        part = span * (LAST - FIRST) / times
        for number in range(times):
            yield _rounded(span * FIRST + part * (number + rng.random()))

    @abstractmethod
    def strike(self, injury: Injury, scene: Scene) -> None:
        """Injure, let it last, heal.

        Raises:
            HarnessError: It could not be done or healed; the run proves nothing.
        """


def _rounded(moment: timedelta) -> timedelta:
    return timedelta(milliseconds=round(moment / timedelta(milliseconds=1)))
