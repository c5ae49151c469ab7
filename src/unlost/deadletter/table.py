"""Letters in a table of a SQL database, from which they can be sent back; for archives that are kept.

What was sent back stays in the table, marked, and is not seen again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.mysql import LONGBLOB

from unlost.core.clock import epoch_ms
from unlost.core.outcome import Outcome
from unlost.database.database import Database, resolve
from unlost.database.dialect import long_text
from unlost.database.migrations import Migration, migrate, missing
from unlost.deadletter.archive import Stored, from_line, to_line
from unlost.deadletter.letter import DeadLetter
from unlost.errors import DeadLetterError, StoreUnavailable

#: Letters that are read at a time; each may have megabytes.
PAGE = 50

_metadata = MetaData()
_BYTES = LargeBinary().with_variant(LONGBLOB(), "mysql", "mariadb")
_archive = Table(
    "unlost_archived_letters",
    _metadata,
    Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
    # A line of an archive file without the body; bytes, because no database takes every text of a header.
    Column("letter", _BYTES, nullable=False),
    Column("body", _BYTES, nullable=False),
    # The others are for whoever looks at the table; cut, and nothing is read from them but the last.
    Column("queue", String(255), nullable=False),
    Column("task", String(255), nullable=False),
    Column("ident", String(255), nullable=False),
    Column("died_of", String(255), nullable=False),
    Column("why", long_text(), nullable=False),
    Column("who", String(255), nullable=False),
    Column("archived_ms", BigInteger, nullable=False),
    Column("sent_back_ms", BigInteger),
    Index("ix_unlost_archived_letters", "sent_back_ms", "id"),
    sqlite_autoincrement=True,
)


def _create(connection: Connection) -> None:
    _metadata.create_all(connection)


PART = "deadletter"
MIGRATIONS = (Migration(1, _create),)


@dataclass(frozen=True, slots=True)
class Kept:
    """A letter of the table."""

    letter: DeadLetter
    id: int


class LetterTable:
    """The letters of a database that were not sent back; a context manager, which closes the connections.

    Args:
        url: SQLAlchemy URL of SQLite, PostgreSQL or MariaDB.
        create: Make the table if it is not there.

    Attributes:
        ready: How many there are at the start.

    Raises:
        ConfigurationError: The URL is of no database that we support.
        DeadLetterError: There is no table, and it is not to be made.
        StoreUnavailable: The database cannot be reached.
    """

    is_cut = False

    def __init__(self, url: str, *, create: bool = False) -> None:
        self._database = Database(url)
        self._place = shown(url)
        try:
            if create:
                migrate(self._database, PART, MIGRATIONS)
            elif missing(self._database, PART, MIGRATIONS):
                raise DeadLetterError(f"{self._place} has no archive: no letter was ever put there")
            with self._database.reading() as connection:
                self.ready = int(connection.scalar(select(func.count()).where(_is_here())) or 0)
        except BaseException:
            self._database.dispose()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.dispose()

    def append(self, letters: Sequence[DeadLetter], notes: Mapping[str, Any]) -> list[Stored]:
        """Insert letters in one transaction, with who put them there and why.

        One that the database does not take, because it is too large, fails alone.

        Raises:
            StoreUnavailable: The database cannot be reached; all letters are still in their queue.

        Crash safety:
            A crash, or a commit whose answer is lost, leaves letters in both places; sent back they are one.
        """
        rows = [_row(letter, notes) for letter in letters]
        try:
            self._insert(rows)
        except StoreUnavailable:
            return [self._alone(row) for row in rows]
        return [Stored() for _ in letters]

    def _alone(self, row: dict[str, Any]) -> Stored:
        try:
            self._insert([row])
        except StoreUnavailable as exc:
            with self._database.reading() as connection:
                connection.execute(select(1))
            why = f"{self._place} does not take a letter: {exc}. It may be too large (max_allowed_packet)"
            return Stored(Outcome.FAILED, DeadLetterError(why))
        return Stored()

    def _insert(self, rows: list[dict[str, Any]]) -> None:
        with self._database.transaction() as connection:
            connection.execute(insert(_archive), rows)

    def letters(self, most: int | None = None) -> Iterator[Kept]:
        """Yield the letters in the order in which they were put there; none that comes in meanwhile.

        Raises:
            DeadLetterError: A row holds no letter; those before it were yielded.
            StoreUnavailable: The database cannot be read.
        """
        with self._database.reading() as connection:
            last = connection.scalar(select(func.max(_archive.c.id))) or 0
        seen = 0
        while page := self._page(seen, last):
            for row in page:
                if most == 0:
                    return
                most = most and most - 1
                yield self._kept(row)
                seen = row.id

    def keep(self, held: Any) -> None:
        """Leave it in the table."""

    def ack(self, batch: Sequence[Any]) -> None:
        """Mark letters as sent back.

        Raises:
            StoreUnavailable: The database cannot be written; the journal knows that they are.
        """
        if not batch:
            return
        numbers = [each.id for each in batch]
        marked = update(_archive).where(_archive.c.id.in_(numbers)).values(sent_back_ms=_now_ms())
        with self._database.transaction() as connection:
            connection.execute(marked)

    def _kept(self, row: Any) -> Kept:
        line = bytes(row.letter).decode(errors="surrogatepass")
        letter = from_line(line, f"row {row.id} of {_archive.name} in {self._place}")
        return Kept(replace(letter, body=bytes(row.body)), row.id)

    def _page(self, after: int, last: int) -> Sequence[Any]:
        query = (
            select(_archive.c.id, _archive.c.letter, _archive.c.body)
            .where(_is_here(), _archive.c.id > after, _archive.c.id <= last)
            .order_by(_archive.c.id)
            .limit(PAGE)
        )
        with self._database.reading() as connection:
            return connection.execute(query).all()


def shown(url: str) -> str:
    """Return a database's URL without its password."""
    return resolve(url).render_as_string(hide_password=True)


def _is_here() -> Any:
    return _archive.c.sent_back_ms.is_(None)


def _row(letter: DeadLetter, notes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "letter": to_line(replace(letter, body=b""), notes).encode(errors="surrogatepass"),
        "body": letter.body,
        "queue": _cut(letter.queue),
        "task": _cut(letter.task),
        "ident": _cut(letter.id),
        "died_of": _cut(letter.reason),
        "why": _clean(str(notes.get("reason", ""))),
        "who": _cut(str(notes.get("by", ""))),
        "archived_ms": _now_ms(),
    }


def _now_ms() -> int:
    return epoch_ms(datetime.now(UTC))


def _cut(text: str) -> str:
    return _clean(text)[:255]


def _clean(text: str) -> str:
    """Return text as every database takes it."""
    return text.encode(errors="replace").decode().replace("\0", "?")
