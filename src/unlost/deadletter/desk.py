"""The operator's desk: everything that can be done with dead letters, as one typed object.

The command line is a thin face on it. Nothing here changes anything but :meth:`DeadLetters.redrive`,
``park``, ``discard`` and ``restore``; each of these writes an audit line before and after.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from kombu import Connection

from unlost.broker.connection import where
from unlost.broker.publisher import Publisher
from unlost.core.clock import Clock, SystemClock, epoch_ms
from unlost.core.message import Outgoing
from unlost.deadletter import archive
from unlost.deadletter.archives import Place, Source, is_table, letters_in, name_of, open_archive
from unlost.deadletter.audit import AuditLog
from unlost.deadletter.disposition import Decision, Ends, Redrive, Seen, Verdict, decide, moved
from unlost.deadletter.fates import Observed
from unlost.deadletter.group import Group, group
from unlost.deadletter.hold import LONGEST, Hold
from unlost.deadletter.journal import Journal
from unlost.deadletter.journals import open_journal
from unlost.deadletter.known import Ahead, KeyOf, Known, Rows
from unlost.deadletter.letter import DeadLetter
from unlost.deadletter.metrics import LetterFigures, figures_of
from unlost.deadletter.move import BATCH, Act, Fates, Move, Report
from unlost.deadletter.pace import Pace
from unlost.deadletter.redact import Redactor
from unlost.deadletter.select import Selection
from unlost.deadletter.watch import Watch
from unlost.errors import BrokerUnavailable, ConfigurationError, DeadLetterError

OnProgress = Callable[[Report], None]

#: Headers on a parked letter: why, by whom, when.
PARKED_REASON = "x-unlost-parked-reason"
PARKED_BY = "x-unlost-parked-by"
PARKED_AT = "x-unlost-parked-at"

_AGAIN = 1.0
"""Seconds between two tries to reach a broker that was lost."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the desk keeps its files.

    Attributes:
        folder: Holds the journals and the audit log; made if it is not there.
    """

    folder: Path

    @property
    def audit(self) -> Path:
        """Return the audit log."""
        return self.folder / "audit.jsonl"

    @property
    def journals(self) -> Path:
        """Return the folder of journals."""
        return self.folder / "journals"


class DeadLetters:
    """Reads queues of dead letters and sends letters on.

    Args:
        broker: AMQP URL, or a kombu connection of which only the parameters are used.
        folder: For journals and the audit log.
        rows: The ledger, to see what is done already and whether a redriven task succeeds.
        key_of: Returns the identity of the idempotency key of a letter's message: what another message has
            done under the same key is not sent back.
        actor: Who acts, for the audit log; user and host of this process when not given.
        patience: How long to try to reach a broker that was lost while letters were moved.
        clock: Wall-clock time.
    """

    def __init__(
        self,
        broker: str | Connection,
        *,
        folder: Path,
        rows: Rows | None = None,
        key_of: KeyOf = lambda _letter: None,
        actor: str | None = None,
        patience: timedelta = timedelta(minutes=2),
        clock: Clock | None = None,
    ) -> None:
        self._source = Connection(broker) if isinstance(broker, str) else broker
        self._places = Places(folder=folder)
        self._rows = rows
        self._key_of = key_of
        self._audit = AuditLog(self._places.audit, actor)
        self._patience = patience
        self._clock = clock or SystemClock()

    def letters(self, queue: Place, selection: Selection | None = None) -> Iterator[DeadLetter]:
        """Yield the letters of a queue, or of an archive (its file or URL), in order, and leave them there.

        Others get none of them until the iterator is closed or at its end. Letters that come in meanwhile
        are seen, too.

        Raises:
            DeadLetterError: There are more than could be read in 20 minutes; those before were yielded.
            QueueMissing: There is no such queue, or it was deleted meanwhile.
            AccessRefused: The user may not read it.
            BrokerUnavailable: No connection, or it was lost; the broker has all letters again.
        """
        chosen = selection or Selection()
        now = self._clock.now()
        with self._open(queue) as hold:
            for held in hold.letters():
                if chosen.matches(held.letter, now):
                    yield held.letter
            if hold.is_cut:
                raise DeadLetterError(f"queue {queue!r} has more letters than can be read in {LONGEST}")

    def groups(
        self,
        queue: str,
        *,
        selection: Selection | None = None,
        redactor: Redactor | None = None,
    ) -> list[Group]:
        """Return the letters of a queue in groups (by ``selection.by``), the largest first, secrets hidden.

        Raises:
            UnlostError: As :meth:`letters`.
        """
        chosen = selection or Selection()
        return group(self.letters(queue, chosen), chosen.by, (redactor or Redactor()).text)

    def find(self, queue: str, ident: str) -> list[DeadLetter]:
        """Return the letters of one task id or AMQP message id."""
        return list(self.letters(queue, Selection(ids=frozenset({ident}))))

    def figures(self, queue: str) -> LetterFigures:
        """Return what is worth an alert: letters by reason, loops, and when the oldest died.

        Raises:
            UnlostError: As :meth:`letters`.
        """
        return figures_of(queue, self.letters(queue))

    def history(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the audit log: who did what, and what came of it."""
        return self._audit.read()

    def preview(self, queue: str, plan: Redrive) -> Report:
        """Return what a redrive would do, as if every publish were confirmed; changes nothing."""
        report, twins = Report(), set()
        known = self._known(plan)
        decide_one = self._decide(plan, _Nothing(), known)
        letters = self.letters(queue)
        for letter in known.ahead(letters, lambda letter: letter) if known else letters:
            decision = decide_one(letter)
            key = letter.identity, letter.redrives
            if decision.verdict is not Verdict.SEND:
                report.keep(decision)
            elif letter.identity is not None and key in twins:
                report.acked += 1
            else:
                report.sent += 1
                twins.add(key)
        return report

    def redrive(
        self,
        queue: str,
        plan: Redrive | None = None,
        *,
        pace: Pace | None = None,
        blind: bool = False,
        most: int | None = None,
        journal: Path | None = None,
        on_progress: OnProgress = lambda _report: None,
    ) -> Report:
        """Send letters back to the queues they died in, from their queue or from a table.

        A run that was killed is resumed by the same call: its journal is found by queue and plan.

        Args:
            queue: The queue of letters, or the URL of a database that they were archived in.
            plan: Which, and how.
            pace: How fast, and when to stop.
            blind: Do not watch what comes of them: no canary, no automatic stop.
            most: Send no more than so many.
            journal: The journal's file instead of one in the desk's folder.
            on_progress: Called after each batch.

        Raises:
            QueueMissing: There is no such queue, or it was deleted meanwhile.
            AccessRefused: A permission is missing.
            BrokerUnavailable: The broker could not be reached for longer than the patience. What was not
                sent is in the queue, what was sent is in the journal.
            JournalError: The journal is in use, damaged, or about something else.

        Crash safety:
            A crash leaves each letter in its queue, or redriven and in the journal, or both; see
            :mod:`unlost.deadletter.move`.
        """
        plan, pace = plan or Redrive(), pace or Pace()
        name = name_of(queue) if is_table(queue) else queue
        purpose = {"action": "redrive", "queue": name, "selection": plan.selection.describe(), "to": plan.to}
        known = self._known(plan)
        with ExitStack() as stack:
            publisher = Publisher(self._source)
            stack.callback(publisher.close)

            def fates(book: Journal) -> Fates | None:
                if blind:
                    return None
                watch = Watch(self._source)
                stack.callback(watch.close)
                return Observed(watch, self._rows, book, pace)

            return self._move(
                queue,
                purpose,
                lambda book: self._decide(plan, book, known),
                _confirmed(publisher, pace.window),
                pace=pace,
                known=known,
                fates=fates,
                most=most,
                journal=journal,
                on_progress=on_progress,
            )

    def park(
        self,
        queue: str,
        to: str,
        reason: str,
        *,
        selection: Selection | None = None,
        on_progress: OnProgress = lambda _report: None,
    ) -> Report:
        """Move letters as they are to another queue of letters, which must exist, or to a table.

        Args:
            queue: The queue of letters.
            to: The other queue, or the URL of a database.
            reason: Why.
            selection: Which.
            on_progress: Called after each batch.

        Raises:
            UnlostError: As :meth:`redrive`. A target that does not exist stops the run; nothing moves.
        """
        chosen = selection or Selection()
        if is_table(to):
            return self._store("park", queue, to, reason, chosen, on_progress)
        if to == queue:
            raise ConfigurationError(f"letters of {queue!r} cannot be parked in itself: name another queue")
        notes = {
            PARKED_REASON: reason,
            PARKED_BY: self._audit.actor,
            PARKED_AT: epoch_ms(self._clock.now()),
        }
        publisher = Publisher(self._source)
        try:
            return self._move(
                queue,
                {"action": "park", "queue": queue, "selection": chosen.describe(), "to": to},
                lambda book: self._select(chosen, book, lambda letter: moved(letter, to, notes)),
                _confirmed(publisher),
                pace=Pace(canary=0),
                reason=reason,
                on_progress=on_progress,
            )
        finally:
            publisher.close()

    def discard(
        self,
        queue: str,
        place: Place,
        reason: str,
        *,
        selection: Selection | None = None,
        on_progress: OnProgress = lambda _report: None,
    ) -> Report:
        """Take letters out of their queue into an archive, from which :meth:`restore` brings them back.

        Args:
            queue: The queue of letters.
            place: The file, or the URL of a database.
            reason: Why.
            selection: Which.
            on_progress: Called after each batch.

        Raises:
            UnlostError: As :meth:`redrive`.
            StoreUnavailable: The table cannot be written; its letters are still in the queue.
            OSError: The file cannot be written; its letters are still in the queue.
        """
        return self._store("discard", queue, place, reason, selection or Selection(), on_progress)

    def _store(
        self,
        action: str,
        queue: str,
        place: Place,
        reason: str,
        chosen: Selection,
        on_progress: OnProgress,
    ) -> Report:
        notes = {"reason": reason, "by": self._audit.actor, "at": self._clock.now().isoformat()}
        name = name_of(place)
        with open_archive(place) as store:
            pending: dict[int, DeadLetter] = {}

            def remember(letter: DeadLetter) -> Outgoing:
                outgoing = Outgoing(exchange="", routing_key=name, body=letter.body)
                pending[id(outgoing)] = letter
                return outgoing

            def write(messages: Iterable[Outgoing]) -> Iterator[archive.Stored]:
                source = iter(messages)
                while batch := list(islice(source, BATCH)):
                    yield from store.append([pending.pop(id(message)) for message in batch], notes)

            return self._move(
                queue,
                {"action": action, "queue": queue, "selection": chosen.describe(), "to": name},
                lambda book: self._select(chosen, book, remember),
                write,
                pace=Pace(canary=0),
                reason=reason,
                on_progress=on_progress,
            )

    def export(self, queue: Place, file: Path, selection: Selection | None = None) -> int:
        """Write letters to a new file, one JSON object a line, and leave them in their queue."""
        return archive.export(self.letters(queue, selection), file)

    def restore(
        self,
        place: Place,
        *,
        to: str | None = None,
        selection: Selection | None = None,
        on_progress: OnProgress = lambda _report: None,
    ) -> Report:
        """Publish the letters of an archive to the queue they were in, or to another.

        Twins in it are one. A call that was killed is resumed by the same call. In a table, what is back in
        its queue is marked and not seen again; a file stays as it is.

        Args:
            place: The file, or the URL of a database.
            to: To this queue instead.
            selection: Which.
            on_progress: Called after each batch.

        Raises:
            DeadLetterError: A line or row holds no letter; those before it were restored.
            UnlostError: As :meth:`redrive`.
        """

        def put_back(letter: DeadLetter) -> Outgoing:
            return moved(letter, to or letter.queue, {})

        chosen, publisher = selection or Selection(), Publisher(self._source)
        try:
            return self._move(
                place,
                {"action": "import", "queue": name_of(place), "selection": chosen.describe(), "to": to},
                lambda book: self._select(chosen, book, put_back),
                _confirmed(publisher),
                pace=Pace(canary=0),
                on_progress=on_progress,
            )
        finally:
            publisher.close()

    def _open(self, place: Place) -> AbstractContextManager[Source]:
        if isinstance(place, Path) or is_table(place):
            return letters_in(place)
        return Hold(self._source, place)

    def _known(self, plan: Redrive) -> Known | None:
        if self._rows is None:
            return None
        return Known(self._rows, lambda letter: self._key_of(plan.changed(letter)))

    def _decide(self, plan: Redrive, seen: Seen, ends: Ends | None) -> Callable[[DeadLetter], Decision]:
        return lambda letter: decide(letter, plan, seen, ends, self._clock.now())

    def _select(
        self, chosen: Selection, book: Journal, make: Callable[[DeadLetter], Outgoing]
    ) -> Callable[[DeadLetter], Decision]:
        def choose(letter: DeadLetter) -> Decision:
            if book.knows(letter.identity, letter.redrives):
                return Decision(Verdict.SENT_BEFORE)
            if not chosen.matches(letter, self._clock.now()):
                return Decision(Verdict.NOT_SELECTED)
            return Decision(Verdict.SEND, make(letter))

        return choose

    def _move(
        self,
        place: Place,
        purpose: dict[str, Any],
        decider: Callable[[Journal], Callable[[DeadLetter], Decision]],
        act: Act,
        *,
        pace: Pace,
        known: Known | None = None,
        fates: Callable[[Journal], Fates | None] = lambda _book: None,
        most: int | None = None,
        journal: Path | None = None,
        reason: str = "",
        on_progress: OnProgress,
    ) -> Report:
        purpose = {**purpose, "broker": f"{where(self._source)}/{self._source.virtual_host}"}
        report = Report()
        with open_journal(self._places.journals, purpose, journal) as book:
            self._audit.write(**purpose, reason=reason, journal=book.path)
            deadline: float | None = None
            while True:
                before = report.sent + report.acked
                try:
                    watching = fates(book)
                    with self._open(place) as hold:
                        report.total = None if hold.ready is None else report.sent + report.acked + hold.ready
                        run = Move(
                            Ahead(hold, known) if known else hold,
                            decider(book),
                            act,
                            book,
                            pace=pace,
                            fates=watching,
                            most=most,
                            report=report,
                            on_progress=on_progress,
                        )
                        run()
                    if report.stopped or not hold.is_cut:
                        break
                except BrokerUnavailable:
                    if report.sent + report.acked > before or deadline is None:
                        deadline = time.monotonic() + self._patience.total_seconds()
                    if time.monotonic() >= deadline:
                        raise
                    time.sleep(_AGAIN)
            book.note("end", at=datetime.now(UTC).isoformat(), **_figures(report))
            self._audit.write(f"{purpose['action']}-ended", queue=purpose["queue"], **_figures(report))
        return report


class _Nothing:
    """A journal that knows of nothing."""

    def knows(self, identity: str | None, redrives: int) -> bool:  # noqa: ARG002 - as a journal's
        return False


def _confirmed(publisher: Publisher, window: int = 1000) -> Act:
    def act(messages: Iterable[Outgoing]) -> Iterable[Any]:
        return publisher.publish_many(messages, window=window)

    return act


def _figures(report: Report) -> dict[str, Any]:
    found = {each.name: getattr(report, each.name) for each in fields(report)}
    return {
        name: dict(value) if isinstance(value, Counter) else value for name, value in found.items() if value
    }
