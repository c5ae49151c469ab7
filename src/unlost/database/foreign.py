"""Databases and transactions that another library than SQLAlchemy has opened, as far as we need them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Dialect, Executable
from sqlalchemy.engine import URL

#: Prepares a driver's connection that another library has opened, and leaves it as it was.
Visit = Callable[[Any], AbstractContextManager[None]]

#: A statement's values, or those of each of its runs.
Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Found:
    """What a statement found: its rows, and how many it matched or changed."""

    rows: Sequence[Any]
    rowcount: int

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the rows."""
        return iter(self.rows)


class Transaction(ABC):
    """A transaction that another library has opened.

    What SQLAlchemy's ``Connection`` is to a writer: something of a dialect that executes statements.
    """

    @property
    @abstractmethod
    def dialect(self) -> Dialect:
        """Return SQLAlchemy's dialect of the database."""

    @abstractmethod
    def execute(self, statement: Executable, parameters: Parameters = ()) -> Found:
        """Execute a statement in the transaction, once for each row of parameters if there are several.

        Raises:
            ConfigurationError: It needs a table that is not there.
        """


class ForeignDatabase(ABC):
    """A database through another library's connection, in whose transaction a unit of work shall be.

    Business rows that are written through that library then commit with the done record.
    """

    @property
    @abstractmethod
    def url(self) -> URL:
        """Return the place of the database, with the driver that we would use."""

    @abstractmethod
    def transaction(self, visit: Visit) -> AbstractContextManager[Transaction]:
        """Begin a transaction that commits at the end of the block, or is rolled back if the block raises.

        Args:
            visit: Entered with the driver's connection before the transaction begins, and left behind it.

        Raises:
            ConfigurationError: One is open already, and would not commit at the end of the block.
            StoreUnavailable: The database cannot be reached, or what the block ran into may pass; if that
                came out of the COMMIT, whether it happened is unknown.
        """

    @abstractmethod
    def conclude(self) -> None:
        """Say that only statements of ours follow in the transaction: what fails now is the store's failure.

        Raises:
            StoreError: The block gave its transaction up; nothing will be committed.
        """
