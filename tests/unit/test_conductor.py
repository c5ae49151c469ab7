"""Injuries begin with the load, end with it at the latest, and are never left unhealed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from unlost.chaos.crew import Crew
from unlost.chaos.history import Recorder, load
from unlost.chaos.nemesis import Conductor, Injury, Nemesis, Scene, Schedule
from unlost.errors import HarnessError
from unlost.testing.brokers import Vhost
from unlost.testing.waiting import wait_until

HOUR = timedelta(hours=1)
SOON = timedelta(seconds=20)


@dataclass(frozen=True, kw_only=True)
class Scratch(Nemesis):
    """Injures nothing, but says when it would have."""

    breaks: bool = False
    said: list[str] = field(default_factory=list)
    name: ClassVar[str] = "scratch"

    def strike(self, _injury: Injury, scene: Scene) -> None:
        """Last, and heal."""
        if self.breaks:
            raise HarnessError("it cannot be healed")
        self.said.append("struck")
        with scene.outage(self.name):
            scene.last(self.lasting)
        self.said.append("healed")


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A scene with nobody on it."""
    nobody: Any = None
    with Recorder(tmp_path / "history.jsonl") as recorder:
        yield Scene(crew=cast(Crew, nobody), vhost=Vhost("v", "amqp://x", "http://x"), recorder=recorder)


def at(seconds: float, nemesis: Nemesis) -> Schedule:
    """Schedule one injury."""
    return Schedule(1, ((nemesis, (Injury(timedelta(seconds=seconds), "", 0.5),)),))


def test_nothing_strikes_before_the_load_begins(scene: Scene) -> None:
    """An injury that is due at once waits for the first message; without one it never comes."""
    scratch = Scratch()
    with Conductor(at(0, scratch), scene):
        pass
    assert scratch.said == []


def test_the_end_of_the_load_heals(scene: Scene, tmp_path: Path) -> None:
    """What would last an hour ends with the load, and the history shows both ends of it."""
    scratch = Scratch(lasting=HOUR)
    with Conductor(at(0, scratch), scene) as conductor:
        scene.begun.set()
        wait_until(lambda: scratch.said == ["struck"], SOON, "it strikes")
    assert scratch.said == ["struck", "healed"]
    assert conductor.strikes == 1
    assert [op.type for op in load(tmp_path / "history.jsonl").of("scratch")] == ["info", "ok"]


def test_what_is_not_due_when_the_load_ends_is_left_out(scene: Scene) -> None:
    """An injury planned for later does not hold up the end."""
    scratch = Scratch()
    with Conductor(at(3600, scratch), scene):
        scene.begun.set()
    assert scratch.said == []


def test_an_injury_that_could_not_be_healed_ends_the_run(scene: Scene) -> None:
    """Its error is raised where the load ends: such a run proves nothing."""
    conductor = Conductor(at(0, Scratch(breaks=True)), scene).__enter__()
    scene.begun.set()
    wait_until(lambda: conductor.strikes, SOON, "it strikes")
    with pytest.raises(HarnessError, match="cannot be healed"):
        conductor.__exit__()


def test_one_turn_at_a_time(scene: Scene) -> None:
    """Who has the broker has it alone, and the next gets it when the load is over at the latest."""
    with scene.turn():
        assert scene._turn.locked()
        scene.over.set()
    assert not scene._turn.locked()
