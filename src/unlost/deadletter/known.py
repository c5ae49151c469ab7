"""What the ledger knows of letters, asked for many at a time: one by one took longer than all the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

from unlost.core.ids import MessageId
from unlost.core.settlement import Row, State
from unlost.deadletter.disposition import Verdict
from unlost.deadletter.letter import DeadLetter

#: Letters of which the ledger is asked in one statement.
AHEAD = 500

KeyOf = Callable[[DeadLetter], MessageId | None]


class Rows(Protocol):
    """The ledger as far as a redrive reads it; every :class:`unlost.core.ports.Ledger` is one."""

    def read_many(self, messages: Collection[MessageId]) -> Mapping[MessageId, Row]:
        """Return the rows of those that have one."""


class Known:
    """The ends of messages and keys, of the letters that come next.

    What it says can be some hundred letters old. That is no matter: a message that is done meanwhile is
    sent back, and the ledger absorbs it.

    Args:
        rows: The ledger.
        key_of: Returns the identity of the idempotency key that a letter's message would claim.
    """

    def __init__(self, rows: Rows, key_of: KeyOf = lambda _letter: None) -> None:
        self._rows = rows
        self._key_of = key_of
        self._found: Mapping[MessageId, Row] = {}

    def ahead(self, source: Iterable[Any], letter_of: Callable[[Any], DeadLetter]) -> Iterator[Any]:
        """Yield what the source yields, and ask the ledger of each batch before its first is yielded.

        Raises:
            StoreUnavailable: The ledger cannot be read.
        """
        items = iter(source)
        while batch := list(islice(items, AHEAD)):
            letters = [letter_of(each) for each in batch]
            asked = {each.message for each in letters} | {self._key_of(each) for each in letters}
            self._found = self._rows.read_many([each for each in asked if each is not None])
            yield from batch

    def end_of(self, letter: DeadLetter) -> Verdict | None:
        """Return whether the message came to an end since; a letter that was only late is no end."""
        row = self._found.get(letter.message) if letter.message else None
        if row is not None and row.state in _ENDS:
            return _ENDS[row.state]
        key = self._key_of(letter)
        done = self._found.get(key) if key else None
        return Verdict.KEY_DONE if done is not None and done.state is State.DONE else None


_ENDS = {State.DONE: Verdict.DONE, State.CANCELLED: Verdict.CANCELLED}


class Ahead:
    """Letters of a holder, taken in batches of which the ledger is asked first.

    Args:
        letters: The holder; :class:`unlost.deadletter.move.Letters`.
        known: Asks.
    """

    def __init__(self, letters: Any, known: Known) -> None:
        self._letters = letters
        self._known = known

    def letters(self, most: int | None = None) -> Iterator[Any]:
        """Yield them, held."""
        yield from self._known.ahead(self._letters.letters(most), lambda held: held.letter)

    def keep(self, held: Any) -> None:
        """Leave one where it is."""
        self._letters.keep(held)

    def ack(self, batch: Sequence[Any]) -> None:
        """Remove some for good."""
        self._letters.ack(batch)
