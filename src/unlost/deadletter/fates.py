"""What becomes of messages that were sent back: the ledger proves success, new letters prove failure."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Protocol

from unlost.core.ids import MessageId
from unlost.core.settlement import Row, State
from unlost.deadletter.journal import Journal
from unlost.deadletter.known import Rows
from unlost.deadletter.letter import DeadLetter
from unlost.deadletter.move import PASSED, UNDECIDED
from unlost.deadletter.pace import Pace

#: How long one look at what came back may block; then the ledger is asked again.
TICK = timedelta(milliseconds=200)


class Arrivals(Protocol):
    """New letters; :class:`unlost.deadletter.watch.Watch`."""

    def follow(self, exchange: str, routing_key: str) -> bool:
        """Watch what comes by an exchange and key."""

    def arrivals(self, wait: timedelta = ...) -> Iterator[DeadLetter]:
        """Yield what has come in."""


class Observed:
    """Follows messages that were sent back.

    Without a ledger nothing proves that one succeeded: then the canary passes if not too many have died
    again when its time is over.

    Args:
        watch: New letters, if they can be watched.
        rows: The ledger, if there is one.
        journal: What was sent back in this run.
        pace: How long to watch the canary, and how much may fail.
    """

    def __init__(self, watch: Arrivals | None, rows: Rows | None, journal: Journal, pace: Pace) -> None:
        self._watch = watch
        self._rows = rows
        self._journal = journal
        self._pace = pace
        self._open: dict[str, tuple[MessageId | None, int]] = {}
        self._total = 0
        self._failed: set[str] = set()
        self._back = 0
        self._is_canary = True
        self._unseen = False
        #: Being sent: a worker can be faster than the journal.
        self._underway: set[tuple[str, int]] = set()

    def prepare(self, letter: DeadLetter) -> None:
        """Begin to watch the way by which this letter would come back, before it is sent."""
        if self._watch is None or not self._watch.follow(letter.exchange, letter.routing_key):
            self._unseen = True
        if letter.identity is not None:
            self._underway.add((letter.identity, letter.redrives))

    def sent(self, letter: DeadLetter) -> None:
        """Note that a letter was sent back."""
        if letter.identity is not None:
            self._underway.discard((letter.identity, letter.redrives))
        if self._is_canary and letter.identity is not None:
            self._open[letter.identity] = letter.message, letter.redrives + 1
            self._total += 1

    def came_back(self) -> int:
        """Return how many have died again since the last call."""
        self._look(timedelta(0))
        back, self._back = self._back, 0
        return back

    def canary(self) -> str:
        """Wait for what becomes of all that was sent so far."""
        if self._unseen and self._rows is None:
            return (
                f"{UNDECIDED}: some letters came by no exchange that can be watched, and there is no store "
                "to ask; give the store, or go without a canary (--blind)"
            )
        deadline = time.monotonic() + self._pace.watch.total_seconds()
        while True:
            self._look(TICK)
            self._ask()
            if self._pace.is_broken(len(self._failed), self._total):
                return f"{len(self._failed)} of {self._total} died again"
            if not self._open:
                return self._end(PASSED)
            if time.monotonic() >= deadline:
                break
            if self._watch is None:
                time.sleep(TICK.total_seconds())
        # One that the ledger never saw says nothing.
        if waiting := len(self._open_rows()):
            return (
                f"{UNDECIDED}: {waiting} of {self._total} neither done nor dead after "
                f"{self._pace.watch}; "
                "are workers running? Resume with a longer --watch"
            )
        return self._end(PASSED)

    def _end(self, verdict: str) -> str:
        self._is_canary = False
        self._open.clear()
        return verdict

    def _look(self, wait: timedelta) -> None:
        if self._watch is None:
            return
        for letter in self._watch.arrivals(wait):
            ident = letter.identity
            if ident is None or not self._is_ours(ident, letter.redrives - 1):
                continue
            self._back += 1
            if self._open.pop(ident, None) is not None:
                self._failed.add(ident)

    def _is_ours(self, ident: str, redrives: int) -> bool:
        return (ident, redrives) in self._underway or self._journal.knows(ident, redrives)

    def _ask(self) -> None:
        """Close what the ledger knows the end of."""
        if self._rows is None:
            return
        rows = self._open_rows()
        for ident, (message, redrives) in list(self._open.items()):
            row = rows.get(message) if message else None
            if row is None:
                continue
            if row.state in (State.DONE, State.CANCELLED):
                del self._open[ident]
            elif row.state is State.DEAD and row.generation.redrives >= redrives:
                del self._open[ident]
                self._failed.add(ident)
                self._back += self._watch is None

    def _open_rows(self) -> Mapping[MessageId, Row]:
        if self._rows is None:
            return {}
        return self._rows.read_many([message for message, _ in self._open.values() if message])
