"""Moving letters out of their queue: decide → do it, confirmed → journal → ack, batch by batch.

That order is what makes a kill harmless. Before the journal's line the letter is still in the queue and is
moved again, under the same id; behind it, it is recognised and only acked.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from unlost.core.message import Outgoing
from unlost.core.outcome import Outcome
from unlost.deadletter.disposition import Decision, Verdict
from unlost.deadletter.journal import Entry, Journal
from unlost.deadletter.letter import DeadLetter
from unlost.deadletter.pace import Pace, Recent
from unlost.deadletter.transit import Fate, Item, Transit
from unlost.errors import BrokerUnavailable, UnlostError

#: Letters that are only to be acked are collected up to so many.
ACKS = 1000

#: Confirmed letters are journaled and acked so many at a time: each time costs a sync of the disk.
BATCH = 500

#: A report tells so many kinds of what is wrong with letters apart.
MOST_REASONS = 20
OTHER_ERRORS = "other errors"


class Held(Protocol):
    """A letter that is held."""

    @property
    def letter(self) -> DeadLetter:
        """Return it."""


class Letters(Protocol):
    """Where letters come from; :class:`unlost.deadletter.hold.Hold`."""

    def letters(self, most: int | None = None) -> Iterator[Any]:
        """Yield them, held."""

    def keep(self, held: Any) -> None:
        """Leave one where it is."""

    def ack(self, batch: Sequence[Any]) -> None:
        """Remove some for good."""


class Sent(Protocol):
    """What became of one message."""

    @property
    def outcome(self) -> Outcome:
        """Return whether it is safe."""

    @property
    def error(self) -> Exception | None:
        """Return why it is not."""


class Act(Protocol):
    """Puts messages where they shall be; one outcome each, in order."""

    def __call__(self, messages: Iterable[Outgoing]) -> Iterable[Sent]:
        """Do it, taking messages as they are needed; what taking one raises is raised."""


class Fates(Protocol):
    """What is learned of messages that were sent back."""

    def prepare(self, letter: DeadLetter) -> None:
        """Begin to watch for a letter, before it is sent back."""

    def sent(self, letter: DeadLetter) -> None:
        """Note that a letter was sent back."""

    def came_back(self) -> int:
        """Return how many have died again since the last call."""

    def canary(self) -> str:
        """Wait for what becomes of all that was sent; ``passed``, or why to stop."""


@dataclass(kw_only=True)
class Report:
    """What a run has done.

    Attributes:
        sent: Letters that are safe elsewhere and were acked.
        acked: Letters that were only acked: sent before, or twins of one that was sent.
        kept: Letters that stay, by verdict; as of the last pass over the queue.
        why: Of some verdicts, what exactly is wrong; the first few kinds only.
        failed: Letters whose publish failed, by error; they stay.
        unknown: Letters whose confirm never came; they stay, and are sent again under the same id.
        came_back: Of those that were sent, how many died again while the run went on.
        stopped: Why the run ended before the last letter; ``None`` if it did not.
        undecided: Whether it stopped because nothing could be told.
        journal: Where its journal is.
        total: How many letters there were to go through, if known.
    """

    sent: int = 0
    acked: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    why: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    came_back: int = 0
    stopped: str | None = None
    undecided: bool = False
    journal: str = ""
    total: int | None = None

    def keep(self, decision: Decision) -> None:
        """Count a letter that stays."""
        self.kept[decision.verdict.value] += 1
        if decision.why and (decision.why in self.why or len(self.why) < MOST_REASONS):
            self.why[decision.why] += 1

    def fail(self, error: str) -> None:
        """Count a letter whose publish failed."""
        known = error in self.failed or len(self.failed) < MOST_REASONS
        self.failed[error if known else OTHER_ERRORS] += 1

    @property
    def seen(self) -> int:
        """Return how many letters were gone through."""
        return self.sent + self.acked + sum(self.kept.values())

    @property
    def is_clean(self) -> bool:
        """Whether every letter that was meant is gone."""
        left = sum(count for verdict, count in self.kept.items() if verdict != Verdict.NOT_SELECTED)
        return not (left or self.failed or self.unknown or self.stopped)


class Move:
    """One pass over a queue's letters.

    Args:
        letters: The letters.
        decide: What becomes of each.
        act: How the messages go out.
        journal: What is known to be safe.
        pace: How fast, and when to stop.
        fates: What is learned of those sent; ``None`` to go on whatever comes of it.
        most: Send no more than so many.
        report: Counted into; one report may see several passes.
        on_progress: Called after each batch.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        letters: Letters,
        decide: Callable[[DeadLetter], Decision],
        act: Act,
        journal: Journal,
        *,
        pace: Pace,
        fates: Fates | None = None,
        most: int | None = None,
        report: Report | None = None,
        on_progress: Callable[[Report], None] = lambda _report: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.report = Report() if report is None else report
        # What stays is counted anew in every pass; what went is gone.
        self.report.kept.clear()
        self.report.why.clear()
        self.report.failed.clear()
        self.report.unknown = 0
        self.report.journal = str(journal.path)
        self._letters = letters
        self._decide = decide
        self._act = act
        self._journal = journal
        self._pace = pace
        self._fates = fates
        self._most = most
        self._on_progress = on_progress
        self._clock = clock
        self._sleep = sleep
        self._transit = Transit()
        self._recent = Recent(pace.window)
        self._is_canary = bool(pace.canary and fates) and not _has_passed(journal)
        self._began = clock()
        self._sent_since = 0
        self._failing = 0
        self._unsettled = 0
        self._is_over = False
        self._lost: BrokerUnavailable | None = None

    def __call__(self) -> Report:
        """Go over the letters once; those that are not acked are the holder's to give back.

        Raises:
            BrokerUnavailable: The broker was lost; go over the letters again, with the same journal.
        """
        source = iter(self._letters.letters())
        self._is_over = False
        while not self._is_over:
            before = self.report.sent
            try:
                for result in self._act(self._outgoing(source, self._room())):
                    self._settle(result)
                self._let_go()
            except UnlostError:
                # What is confirmed is to be known, though the acks may not reach the broker any more.
                self._record(self._transit.leaving())
                raise
            self._rest(self.report.sent - before)
        if self._lost is not None:
            raise self._lost
        return self.report

    def _room(self) -> int | None:
        """Return how many letters may go out before we pause, or ``None`` for no pause."""
        if self._is_canary:
            room: int | None = self._pace.canary
        else:
            room = None if self._pace.rate is None else self._pace.batch
        if self._most is None:
            return room
        left = max(0, self._most - self.report.sent)
        return left if room is None else min(room, left)

    def _outgoing(self, source: Iterator[Any], room: int | None) -> Iterator[Outgoing]:
        """Take letters and yield what is to be published of them; sets ``_is_over`` behind the last one."""
        sent = 0
        while not self._is_stopping and (room is None or sent < room) and self._transit.only_acks < ACKS:
            held = next(source, None)
            if held is None:
                self._is_over = True
                return
            outgoing = self._taken(held)
            if outgoing is not None:
                sent += 1
                yield outgoing

    @property
    def _is_stopping(self) -> bool:
        return self._lost is not None or self.report.stopped is not None

    def _taken(self, held: Any) -> Outgoing | None:
        letter: DeadLetter = held.letter
        decision = self._decide(letter)
        if decision.verdict is Verdict.SENT_BEFORE:
            self._transit.only_ack(held)
        elif letter.redrives and self._transit.carries(letter.identity, letter.redrives - 1):
            # A worker can be faster than the journal.
            self.report.kept[Verdict.CAME_BACK.value] += 1
            self._letters.keep(held)
        elif decision.verdict is not Verdict.SEND or decision.outgoing is None:
            self.report.keep(decision)
            self._letters.keep(held)
        elif self._transit.send(held, decision.outgoing):
            if self._fates is not None:
                self._fates.prepare(letter)
            return decision.outgoing
        return None

    def _settle(self, result: Sent) -> None:
        is_safe = result.outcome is Outcome.OK
        item = self._transit.settle(safe=is_safe)
        self._unsettled += 1
        self._failing = 0 if is_safe else self._failing + 1
        if isinstance(result.error, BrokerUnavailable):
            self._lost = result.error
        if result.outcome is Outcome.UNKNOWN:
            self.report.unknown += 1
        elif not is_safe:
            self.report.fail(_kind(result.error, item))
        if self._failing >= self._pace.window and not self._is_stopping:
            self._stop(f"{self._failing} letters in a row could not be sent: {_in_a_line(result.error)}")
        if self._unsettled >= min(BATCH, self._pace.window):
            self._let_go()

    def _let_go(self) -> None:
        """Journal what is confirmed, then ack it, then look at what became of it."""
        self._unsettled = 0
        leaving = self._transit.leaving()
        sent = self._record(leaving)
        for item in leaving:
            if item.fate is Fate.UNSAFE:
                self._letters.keep(item.held)
        gone = [item.held for item in leaving if item.fate is Fate.SAFE]
        self._letters.ack(gone)
        self.report.sent += sent
        self.report.acked += len(gone) - sent
        self._judge(leaving, sent)
        self._on_progress(self.report)

    def _record(self, leaving: list[Item]) -> int:
        entries = [
            _entry(item.held.letter, item.outgoing)
            for item in leaving
            if item.outgoing is not None and item.fate is Fate.SAFE
        ]
        self._journal.record(entries)
        return len(entries)

    def _judge(self, leaving: list[Item], sent: int) -> None:
        if self._fates is None or not sent or self._is_stopping:
            return
        for item in leaving:
            if item.outgoing is not None and item.fate is Fate.SAFE:
                self._fates.sent(item.held.letter)
        if not self._is_canary:
            self._look(sent)

    def _look(self, sent: int) -> None:
        """See what has died again, and stop if it is too much of what was sent last."""
        if self._fates is None or self._is_stopping:
            return
        back = self._fates.came_back()
        self.report.came_back += back
        self._recent.add(sent, back)
        if self._pace.is_broken(self._recent.failed, self._recent.sent):
            self._stop(f"{self._recent.failed} of the last {self._recent.sent} died again")

    def _rest(self, sent: int) -> None:
        """Between two bursts: await the canary, keep to the rate, and see whether this is the end."""
        if self._is_stopping or (self._most is not None and self.report.sent >= self._most):
            self._is_over = True
        elif self._is_canary and sent:
            self._await_canary(sent)
        elif not self._is_over:
            self._wait(sent)
            if not self._is_canary:
                self._look(0)

    def _await_canary(self, sent: int) -> None:
        if self._fates is None:
            return
        verdict = self._fates.canary()
        self.report.came_back += self._fates.came_back()
        self._journal.note("canary", sent=sent, verdict=verdict)
        if verdict == PASSED:
            self._is_canary = False
            self._began, self._sent_since = self._clock(), 0
        else:
            self.report.undecided = verdict.startswith(UNDECIDED)
            self._stop(f"canary of {sent}: {verdict}")
            self._is_over = True

    def _stop(self, why: str) -> None:
        self.report.stopped = why
        self._journal.note("stopped", why=why)

    def _wait(self, sent: int) -> None:
        self._sent_since += sent
        pause = self._pace.pause(self._sent_since, self._clock() - self._began)
        if pause > 0:
            self._sleep(pause)


PASSED = "passed"
UNDECIDED = "undecided"


def _entry(letter: DeadLetter, outgoing: Outgoing) -> Entry:
    """Return the journal's line; of an edit it keeps the body before and after."""
    details: dict[str, Any] = {"q": outgoing.routing_key}
    if outgoing.body != letter.body:
        details |= {"old": _as_text(letter.body), "new": _as_text(outgoing.body)}
    return Entry(letter.identity, letter.redrives, details)


def _as_text(body: bytes | str) -> str:
    return body if isinstance(body, str) else body.decode(errors="backslashreplace")


def _has_passed(journal: Journal) -> bool:
    """Whether the last canary of an earlier run passed."""
    verdicts = [note["verdict"] for note in journal.notes if note["event"] == "canary"]
    return bool(verdicts) and verdicts[-1] == PASSED


def _kind(error: Exception | None, item: Item) -> str:
    """Return an error without the name of the message, so that equal ones are one kind."""
    text = str(error or "refused")
    if item.outgoing is not None:
        text = text.replace(item.outgoing.describe(), f"to {item.outgoing.routing_key!r}")
    return _in_a_line(text)


def _in_a_line(error: Exception | str | None) -> str:
    return " ".join(str(error or "refused").split())[:300]
