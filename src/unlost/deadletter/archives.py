"""Where letters come from and go to beside queues: a file of JSON lines, or a table of a database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from unlost.database.schemes import is_supported
from unlost.deadletter import archive
from unlost.deadletter.letter import DeadLetter
from unlost.deadletter.move import Letters
from unlost.deadletter.table import LetterTable, shown

#: A file, or the URL of a database.
Place = Path | str


class Source(Letters, Protocol):
    """Letters that are held, how many there seemed to be, and whether they were given up before the last."""

    @property
    def ready(self) -> int | None:
        """Return how many there were at the start, if known."""

    @property
    def is_cut(self) -> bool:
        """Whether there are more, which a further pass will see."""


class Archive(Protocol):
    """Takes letters that are to leave their queue; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def append(self, letters: Sequence[DeadLetter], notes: Mapping[str, Any]) -> list[archive.Stored]:
        """Take letters; when this returns they are safe."""


def is_table(place: Place) -> bool:
    """Whether letters are in, or go to, a database."""
    return isinstance(place, str) and is_supported(place)


def name_of(place: Place) -> str:
    """Return what a place is called in journals and messages: an absolute path, or a URL without password."""
    return shown(place) if isinstance(place, str) else str(place.absolute())


def open_archive(place: Place) -> Archive:
    """Open an archive to put letters into; a file or table is made if it is not there.

    Raises:
        OSError: The file cannot be written.
        UnlostError: As :class:`unlost.deadletter.table.LetterTable`.
    """
    return LetterTable(place, create=True) if isinstance(place, str) else archive.Archive(place)


def letters_in(place: Place) -> AbstractContextManager[Source]:
    """Open an archive to take letters from.

    Raises:
        UnlostError: As :class:`unlost.deadletter.table.LetterTable`.
    """
    return LetterTable(place) if isinstance(place, str) else nullcontext(_FileLetters(place))


@dataclass(frozen=True)
class _Line:
    """A letter of a file; there is nothing to settle."""

    letter: DeadLetter


class _FileLetters:
    """The letters of a file, as a move takes them."""

    is_cut = False
    ready = None

    def __init__(self, file: Path) -> None:
        self._file = file

    def letters(self, most: int | None = None) -> Iterator[_Line]:  # noqa: ARG002 - a file has an end
        for letter in archive.read(self._file):
            yield _Line(letter)

    def keep(self, held: Any) -> None:
        """Leave it in the file."""

    def ack(self, batch: Sequence[Any]) -> None:
        """Leave them in the file."""
