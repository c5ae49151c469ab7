"""The journal and the order of moving: killed anywhere, a redrive loses nothing and sends nothing twice."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.letters import a_letter, as_letter
from unlost.core import headers as h
from unlost.core.clock import from_epoch_ms
from unlost.core.message import Outgoing
from unlost.core.outcome import Outcome
from unlost.deadletter.disposition import Redrive, decide
from unlost.deadletter.journal import Entry, Journal
from unlost.deadletter.letter import DeadLetter
from unlost.deadletter.move import Move
from unlost.deadletter.pace import Pace
from unlost.errors import JournalError

PURPOSE = {"action": "redrive", "queue": "q"}
NOW = from_epoch_ms(1_790_000_000_000)


class Killed(BaseException):
    """The process is no more."""


@dataclass
class Fuse:
    """Kills the process at its n-th step."""

    steps: int

    def burn(self) -> None:
        """Take a step."""
        self.steps -= 1
        if self.steps < 0:
            raise Killed


@dataclass(eq=False)
class Held:
    """A letter in the queue of this world."""

    letter: DeadLetter


@dataclass
class World:
    """A broker that survives the tool's kills, and what of the tool's files does."""

    queue: list[Held]
    published: list[tuple[str, int]] = field(default_factory=list)
    #: What is safe in the journal, as of its last sync.
    synced: set[tuple[str, int]] = field(default_factory=set)
    #: Publishes of what was safe in the journal already.
    repeated: list[tuple[str, int]] = field(default_factory=list)
    #: Letters that left the queue before they were anywhere else.
    lost: list[tuple[str, int]] = field(default_factory=list)


@dataclass
class Ok:
    """A confirm, or none."""

    outcome: Outcome
    error: Exception | None = None


class Tool:
    """One life of the tool: everything that it does to the world can be its last step."""

    def __init__(self, world: World, fuse: Fuse, confirms: Iterator[Outcome]) -> None:
        self.world, self.fuse, self.confirms = world, fuse, confirms

    def letters(self, most: int | None = None) -> Iterator[Held]:  # noqa: ARG002 - as a hold's
        """Hand out what is in the queue."""
        yield from list(self.world.queue)

    def keep(self, held: Held) -> None:
        """Leave one."""

    def ack(self, batch: Sequence[Held]) -> None:
        """Remove some; the last of them may not have reached the broker."""
        for held in batch:
            self.fuse.burn()
            key = str(held.letter.identity), held.letter.redrives
            if key not in self.world.published:
                self.world.lost.append(key)
            self.world.queue.remove(held)

    def publish(self, messages: Iterable[Outgoing]) -> Iterable[Ok]:
        """Store messages, and confirm some of them."""
        for message in messages:
            self.fuse.burn()
            key = f"{message.headers['task']}[{message.headers['id']}]", message.headers[h.REDRIVES] - 1
            outcome = next(self.confirms)
            if outcome is not Outcome.FAILED:
                self.world.published.append(key)
                if key in self.world.synced:
                    self.world.repeated.append(key)
            self.fuse.burn()
            yield Ok(outcome)


class CrashingJournal(Journal):
    """A journal whose process can die within a write, and whose machine within a sync."""

    def __init__(self, path: Path, world: World, fuse: Fuse, cut: float) -> None:
        self.world, self.fuse, self.cut = world, fuse, cut
        self.safe = path.stat().st_size if path.exists() else 0
        super().__init__(path, PURPOSE)

    def record(self, entries: Iterable[Entry]) -> None:
        """Record, and know what is safe from here on."""
        entries = list(entries)
        super().record(entries)
        self.world.synced |= {(str(each.identity), each.redrives) for each in entries}

    def _write(self, data: bytes) -> None:
        super()._write(data)
        try:
            self.fuse.burn()
        except Killed:
            # What was not synced may be there in part.
            size = self.path.stat().st_size
            with self.path.open("r+b") as file:
                file.truncate(self.safe + int((size - self.safe) * self.cut))
            raise

    def _sync(self) -> None:
        self.fuse.burn()
        super()._sync()
        self.safe = self.path.stat().st_size


def live(world: World, path: Path, fuse: Fuse, confirms: Iterator[Outcome], cut: float, batch: int) -> None:
    """Run the tool until it is done or killed."""
    try:
        journal = CrashingJournal(path, world, fuse, cut)
    except Killed:
        return
    tool = Tool(world, fuse, confirms)
    try:
        Move(
            tool,
            lambda letter: decide(letter, Redrive(), journal, None, NOW),
            tool.publish,
            journal,
            pace=Pace(canary=0, window=batch),
        )()
    except Killed:
        pass
    finally:
        journal.close()


def endless(outcomes: Sequence[Outcome]) -> Iterator[Outcome]:
    """Yield the given outcomes, then only confirms."""
    yield from outcomes
    while True:
        yield Outcome.OK


LETTERS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=12)
LIVES = st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1)), max_size=8)
CONFIRMS = st.lists(st.sampled_from(list(Outcome)), max_size=20)


def after(
    letters: list[tuple[int, int]],
    lives: list[tuple[int, float]],
    confirms: list[Outcome],
    batch: int,
) -> World:
    """Return the world after a redrive with a kill at the given step of each life, then one to its end."""
    world = World([Held(as_letter(a_letter(f"m{name}", redrives=r))) for name, r in letters])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        source = endless(confirms)
        for steps, cut in lives:
            live(world, path, Fuse(steps), source, cut, batch)
        for _ in range(len(confirms) + 1):
            live(world, path, Fuse(10**6), source, 1.0, batch)
    return world


@settings(max_examples=60, deadline=None)
@given(LETTERS, LIVES, CONFIRMS, st.integers(1, 5))
def test_killed_anywhere_nothing_is_lost_or_sent_after_it_was_journaled(
    letters: list[tuple[int, int]], lives: list[tuple[int, float]], confirms: list[Outcome], batch: int
) -> None:
    """Whatever steps the kills come at, every letter ends published or in its queue, and none twice."""
    world = after(letters, lives, confirms, batch)
    everything = {(f"shop.charge[m{name}]", r) for name, r in letters}
    left = {(str(held.letter.identity), held.letter.redrives) for held in world.queue}
    assert world.lost == []
    assert set(world.published) | left == everything
    # Of two letters of one message the later one looks as if it had come back, and waits for the next run.
    assert all((name, redrives - 1) in world.published for name, redrives in left)
    assert world.repeated == []


def test_the_property_notices_a_journal_that_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: if the journal knew nothing, a kill between journal and ack would send letters twice."""
    monkeypatch.setattr(Journal, "knows", lambda *_: False)
    worlds = [after([(0, 0), (1, 0)], [(steps, 1.0)], [], 2) for steps in range(15)]
    assert any(world.repeated for world in worlds)


def test_the_property_notices_an_ack_before_the_publish(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: if letters were acked first, a kill behind that would lose them."""
    taken = Move._taken

    def ack_first(self: Move, held: Held) -> Outgoing | None:
        self._letters.ack([held])
        return taken(self, held)

    monkeypatch.setattr(Move, "_taken", ack_first)
    world = World([Held(as_letter(a_letter("m0")))])
    with tempfile.TemporaryDirectory() as folder:
        live(world, Path(folder) / "j", Fuse(3), endless([]), 1.0, 1)
    assert world.lost


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    """A line without its end is not believed, and the next one does not stick to it."""
    path = tmp_path / "j.jsonl"
    with Journal(path, PURPOSE) as journal:
        journal.record([Entry("a", 0), Entry("b", 0)])
    with path.open("ab") as file:
        file.write(b'{"sent":"c","r":0}')
    with Journal(path, PURPOSE) as journal:
        assert [journal.knows(name, 0) for name in "abc"] == [True, True, False]
        journal.record([Entry("d", 0)])
    assert [json.loads(line).get("sent") for line in path.read_text().splitlines()] == [None, "a", "b", "d"]


def test_a_damaged_line_is_refused(tmp_path: Path) -> None:
    """Damage before the last line is named, not skipped."""
    path = tmp_path / "j.jsonl"
    Journal(path, PURPOSE).close()
    with path.open("ab") as file:
        file.write(b'garbage\n{"sent":"c","r":0}\n')
    with pytest.raises(JournalError, match="line 2 is damaged"):
        Journal(path, PURPOSE)


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    """A journal is gone on with only for what it was begun for."""
    path = tmp_path / "j.jsonl"
    Journal(path, PURPOSE).close()
    with pytest.raises(JournalError, match="about queue 'q', not 'other'"):
        Journal(path, {**PURPOSE, "queue": "other"})


def test_a_journal_in_use_is_refused(tmp_path: Path) -> None:
    """Two runs do not write one journal."""
    with Journal(tmp_path / "j", PURPOSE), pytest.raises(JournalError, match="another process"):
        Journal(tmp_path / "j", PURPOSE)


def test_letters_without_identity_are_never_taken_for_sent(tmp_path: Path) -> None:
    """What has no identity is counted and not recognised."""
    with Journal(tmp_path / "j", PURPOSE) as journal:
        journal.record([Entry(None, 0)])
        assert not journal.knows(None, 0)
    with Journal(tmp_path / "j", PURPOSE) as journal:
        assert (journal.sent, journal.knows(None, 0)) == (1, False)


def test_the_world_counts_what_it_publishes() -> None:
    """Without kills each letter is published once, its twins with it."""
    world = after([(0, 0), (0, 0), (1, 0), (2, 1)], [], [], 2)
    assert Counter(world.published) == Counter(
        [("shop.charge[m0]", 0), ("shop.charge[m1]", 0), ("shop.charge[m2]", 1)]
    )
