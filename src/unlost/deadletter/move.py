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
from unlost.errors import BrokerUnavailable

#: Letters that are only to be acked are collected up to so many.
ACKS = 1000


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

    def __call__(self, messages: Sequence[Outgoing]) -> Iterable[Sent]:
        """Do it."""


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
        failed: Letters whose publish failed, by error; they stay.
        unknown: Letters whose confirm never came; they stay, and are sent again under the same id.
        came_back: Of those that were sent, how many died again while the run went on.
        stopped: Why the run ended before the last letter; ``None`` if it did not.
        undecided: Whether it stopped because nothing could be told.
        journal: Where its journal is.
    """

    sent: int = 0
    acked: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    came_back: int = 0
    stopped: str | None = None
    undecided: bool = False
    journal: str = ""

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
        self._batch = _Batch()
        self._recent = Recent(pace.window)
        self._is_canary = bool(pace.canary and fates) and not _has_passed(journal)
        self._began = clock()
        self._sent_since = 0
        self._lost: BrokerUnavailable | None = None

    def __call__(self, held_at_most: int | None = None) -> Report:
        """Go over the letters once; those that are not acked are the holder's to give back.

        Args:
            held_at_most: Look at no more letters than so many.

        Raises:
            BrokerUnavailable: The broker was lost; go over the letters again, with the same journal.
        """
        for held in self._letters.letters(held_at_most):
            self._take(held)
            if self._batch.sends >= self._room() or self._batch.acks >= ACKS:
                self._flush()
                if self.report.stopped or self._is_spent():
                    return self.report
        self._flush()
        return self.report

    def _room(self) -> int:
        room = self._pace.canary if self._is_canary else self._pace.batch
        return room if self._most is None else min(room, self._most - self.report.sent)

    def _is_spent(self) -> bool:
        return self._most is not None and self.report.sent >= self._most

    def _take(self, held: Any) -> None:
        letter: DeadLetter = held.letter
        decision = self._decide(letter)
        if decision.verdict is Verdict.SEND and decision.outgoing is not None:
            if self._fates is not None:
                self._fates.prepare(letter)
            self._batch.add(held, decision.outgoing)
        elif decision.verdict is Verdict.SENT_BEFORE:
            self._batch.only_ack(held)
        else:
            self.report.kept[decision.verdict.value] += 1
            self._letters.keep(held)

    def _flush(self) -> None:
        batch, self._batch = self._batch, _Batch()
        if not batch.order:
            return
        failed = self._publish(batch)
        gone = [held for held in batch.order if id(held) not in failed]
        for held in batch.order:
            if id(held) in failed:
                self._letters.keep(held)
        self._journal.record(
            _entry(held.letter, outgoing) for held, outgoing in batch.sending if id(held) not in failed
        )
        self._letters.ack(gone)
        sent = sum(id(held) not in failed for held, _ in batch.sending)
        self.report.sent += sent
        self.report.acked += len(gone) - sent
        self._judge(batch, failed, sent)
        self._on_progress(self.report)
        if self._lost is not None:
            raise self._lost

    def _publish(self, batch: _Batch) -> set[int]:
        """Send a batch; return the ids of the held letters that are not safe, twins included."""
        failed: set[int] = set()
        results = self._act([outgoing for _, outgoing in batch.sending])
        for (held, _), result in zip(batch.sending, results, strict=True):
            if result.outcome is Outcome.OK:
                continue
            failed.update(id(each) for each in batch.with_twins(held))
            if isinstance(result.error, BrokerUnavailable):
                self._lost = result.error
            if result.outcome is Outcome.UNKNOWN:
                self.report.unknown += 1
            else:
                self.report.failed[_in_a_line(result.error)] += 1
        return failed

    def _judge(self, batch: _Batch, failed: set[int], sent: int) -> None:
        if self._lost is not None:
            return
        if batch.sending and not sent:
            why = next(iter(self.report.failed), "no confirm came")
            self.report.stopped = f"none of {len(batch.sending)} letters could be sent: {why}"
            return
        if self._fates is None or not sent:
            self._wait(sent)
            return
        for held, _ in batch.sending:
            if id(held) not in failed:
                self._fates.sent(held.letter)
        if self._is_canary:
            self._await_canary(sent)
            return
        back = self._fates.came_back()
        self.report.came_back += back
        self._recent.add(sent, back)
        if self._pace.is_broken(self._recent.failed, self._recent.sent):
            self._stop(f"{self._recent.failed} of the last {self._recent.sent} died again")
            return
        self._wait(sent)

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


class _Batch:
    """Letters in the order in which they were taken: to send, and to ack with them."""

    def __init__(self) -> None:
        self.order: list[Any] = []
        self.sending: list[tuple[Any, Outgoing]] = []
        self.acks = 0
        self._first: dict[tuple[str, int], Any] = {}
        self._twins: dict[int, list[Any]] = {}

    @property
    def sends(self) -> int:
        return len(self.sending)

    def add(self, held: Any, outgoing: Outgoing) -> None:
        letter: DeadLetter = held.letter
        self.order.append(held)
        if letter.identity is not None:
            first = self._first.setdefault((letter.identity, letter.redrives), held)
            if first is not held:
                self._twins.setdefault(id(first), []).append(held)
                self.acks += 1
                return
        self.sending.append((held, outgoing))

    def only_ack(self, held: Any) -> None:
        self.order.append(held)
        self.acks += 1

    def with_twins(self, held: Any) -> list[Any]:
        return [held, *self._twins.get(id(held), [])]


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


def _in_a_line(error: Exception | None) -> str:
    return " ".join(str(error or "refused").split())[:300]
