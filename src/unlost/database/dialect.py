"""What differs from database to database, behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, ClassVar

from sqlalchemy import ColumnElement, Connection, Dialect, Double, Engine, String, Table, Text
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import URL
from sqlalchemy.sql.dml import Insert, Update
from sqlalchemy.types import TypeDecorator, TypeEngine

from unlost.database.foreign import Transaction

#: How long a statement waits for a lock before it gives up.
LOCK_PATIENCE = timedelta(seconds=30)
#: How long making a connection may take.
CONNECT_PATIENCE = timedelta(seconds=10)
#: How long a transaction may sit idle, locks in hand, before the server ends it: a process that was
#: stopped (SIGSTOP) or cut off must not hold its rows for ever.
IDLE_PATIENCE = timedelta(minutes=5)

#: Execution option of a connection that writes nothing.
READS = "unlost_reads"

#: MariaDB compares text without regard to case and trailing spaces unless told otherwise.
_EXACT = "utf8mb4_nopad_bin"


def exact(length: int) -> TypeEngine[str]:
    """Return the type of a key column: text equal only to itself, of at most ``length`` characters."""
    return String(length).with_variant(mysql.VARCHAR(length, collation=_EXACT), "mysql", "mariadb")


def long_text() -> TypeEngine[str]:
    """Return the type of text without a bound that matters; MariaDB's own TEXT ends at 64 KiB."""
    return Text().with_variant(mysql.LONGTEXT(collation="utf8mb4_bin"), "mysql", "mariadb")


class Seconds(TypeDecorator[float]):
    """A moment in seconds of the database's clock, in double precision everywhere."""

    impl = Double
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> float | None:  # noqa: ARG002
        """Return a float: PostgreSQL's ``extract`` and MariaDB's ``UNIX_TIMESTAMP`` return decimals."""
        return None if value is None else float(value)


class DatabaseDialect(ABC):
    """How one kind of database is opened, asked for the time and written to."""

    name: ClassVar[str]
    #: Whether all its users are processes of one host, so that another boot's are known to be dead.
    single_host: ClassVar[bool] = False
    #: Whether a child may be forked while connections are open (it never uses those).
    survives_fork: ClassVar[bool] = True

    @abstractmethod
    def engine(self, url: URL) -> Engine:
        """Make an engine whose waits all have an end."""

    @abstractmethod
    def clock(self) -> ColumnElement[float]:
        """Return the database's time in seconds, read when the statement runs, not when it was written."""

    @abstractmethod
    def wall_ms(self) -> ColumnElement[int]:
        """Return the database's wall clock, epoch milliseconds, read when the statement runs."""

    @abstractmethod
    def insert_missing(self, table: Table, values: Mapping[str, Any]) -> Insert:
        """Return an insert that does nothing if a row with the same primary key is there."""

    @abstractmethod
    def upsert(self, table: Table, values: Mapping[str, Any], change: Iterable[str] | None = None) -> Insert:
        """Return an insert that updates the row with the same primary key if there is one.

        Args:
            table: Where to.
            values: By column name, the primary key among them.
            change: The columns to update; all but the primary key when not given.
        """

    @abstractmethod
    def exclusive(self, connection: Connection, name: str) -> AbstractContextManager[None]:
        """Hold a lock of that name against all other processes that ask for it; for migrations."""

    def relaxed(self, connection: Connection) -> AbstractContextManager[None]:  # noqa: ARG002
        """Let what commits in the block be lost with the whole host, where that costs nothing: a lease, say.

        Only where a host that goes takes everybody along that could rely on it; elsewhere this does nothing.
        """
        return nullcontext()

    def limit_idle(self, connection: Connection | Transaction, idle: timedelta) -> None:  # noqa: B027
        """Have the server end this transaction if it sits idle for so long, where there is a server."""

    def limiting_idle(self, update: Update, idle: timedelta) -> Update | None:  # noqa: ARG002
        """Return an update that also does what :meth:`limit_idle` does, in the same round trip.

        Of an update that finds no row nobody can say whether it does.

        Returns:
            ``None`` where that takes a statement of its own, or nothing is to be done.
        """
        return None

    @contextmanager
    def visiting(self, raw: Any) -> Iterator[None]:  # noqa: ARG002
        """Prepare a driver's connection that another library has opened for our statements.

        After the block it is as it was.
        """
        yield


def changed(table: Table, values: Mapping[str, Any], change: Iterable[str] | None) -> list[str]:
    """Return the columns that an upsert updates."""
    if change is not None:
        return list(change)
    return [name for name in values if name not in table.primary_key.columns]
