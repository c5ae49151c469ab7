"""One database: its engine, its transactions, and what a fork may not inherit."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from unlost.database.dialect import READS, DatabaseDialect
from unlost.database.errors import translated
from unlost.database.forkgate import ForkGate
from unlost.database.schemes import SCHEMES, SUPPORTED
from unlost.errors import ConfigurationError


class Database:
    """An SQL database that several parts may share.

    Connections do not cross a fork. ``engine`` is the SQLAlchemy engine: application code whose rows
    shall commit with ours uses it too, and on SQLite no engine of its own
    (see :mod:`unlost.database.forkgate`).

    Args:
        url: ``sqlite:///PATH``, ``postgresql+psycopg://...`` or ``mariadb+pymysql://...``. A relative path
            is made absolute at once, because workers may change directory.

    Raises:
        ConfigurationError: The database is not one we support, or its driver is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = resolve(url)
        self.dialect = _dialect(self.url)
        self.engine = _engine(self.dialect, self.url)
        self._gate = None if self.dialect.survives_fork else ForkGate(self.engine.dispose)
        if self._gate is None:
            _forget_after_fork(self.engine)

    def __repr__(self) -> str:
        return f"Database({self.url.render_as_string(hide_password=True)!r})"

    def in_use(self) -> AbstractContextManager[None]:
        """Hold forks off while this thread uses the database, where a fork could do harm."""
        return nullcontext() if self._gate is None else self._gate.open()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Open a transaction that commits at the end of the block.

        Raises:
            StoreUnavailable: The database cannot be reached, or something is locked for too long; if that
                came out of the COMMIT, whether it happened is unknown.
        """
        with self.in_use(), translated(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def autocommit(self, *, durable: bool = True) -> Iterator[Connection]:
        """Return a connection whose every statement is a transaction, in one round trip where it can be.

        Args:
            durable: Otherwise a power cut may take it back, if all who could rely on it are gone then too.

        Raises:
            StoreUnavailable: As :meth:`transaction`.
        """
        if self.dialect.single_host:
            with (
                self.in_use(),
                translated(),
                self.engine.connect() as connection,
                nullcontext() if durable else self.dialect.relaxed(connection),
                connection.begin(),
            ):
                yield connection
            return
        with self.in_use(), translated(), self.engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Return a connection for one query; on SQLite it does not ask for the file's only write lock.

        Raises:
            StoreUnavailable: As :meth:`transaction`.
        """
        if not self.dialect.single_host:
            with self.autocommit() as connection:
                yield connection
            return
        with (
            self.in_use(),
            translated(),
            self.engine.connect() as connection,
            connection.execution_options(**{READS: True}).begin(),
        ):
            yield connection

    def dispose(self) -> None:
        """Close all connections that are not in use."""
        self.engine.dispose()


def resolve(url: str) -> URL:
    """Return the URL with the driver we use and, for SQLite, an absolute path.

    Raises:
        ConfigurationError: It is no URL, or not of a database that we support.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as exc:
        # Not repeated: it may hold a password.
        raise ConfigurationError(f"the store is no database URL: use {SUPPORTED}") from exc
    if parsed.drivername not in SCHEMES:
        raise _unsupported(parsed)
    driver = SCHEMES[parsed.drivername][0]
    if driver != "sqlite":
        return parsed.set(drivername=driver)
    path = parsed.database or ":memory:"
    # A file URI can name a database in memory, and its path would need rules of its own.
    if path.startswith((":memory:", "file:")):
        raise _unsupported(parsed)
    return parsed.set(database=os.path.abspath(path))  # noqa: PTH100 - resolves no links


def _unsupported(url: URL) -> ConfigurationError:
    shown = url.render_as_string(hide_password=True)
    return ConfigurationError(
        f"the store {shown!r} is not supported: use {SUPPORTED}; an SQLite file must be one that all workers "
        "of the host can reach"
    )


def _dialect(url: URL) -> DatabaseDialect:
    backend = url.get_backend_name()
    if backend == "postgresql":
        from unlost.database.postgresql import PostgreSQL

        return PostgreSQL()
    if backend == "mariadb":
        from unlost.database.mariadb import MariaDB

        return MariaDB()
    from unlost.database.sqlite import SQLite

    return SQLite()


def _engine(dialect: DatabaseDialect, url: URL) -> Engine:
    _, module, extra = SCHEMES[url.drivername]
    try:
        return dialect.engine(url)
    except ModuleNotFoundError as exc:
        if exc.name != module:
            raise
        shown = url.render_as_string(hide_password=True)
        raise ConfigurationError(
            f"the store {shown!r} needs {module}, which is not installed: pip install 'unlost[{extra}]'"
        ) from exc


def _forget_after_fork(engine: Engine) -> None:
    """Have forked children open connections of their own and leave the parent's untouched."""
    alive = weakref.ref(engine)

    def forget() -> None:
        inherited = alive()
        if inherited is not None:
            inherited.dispose(close=False)

    os.register_at_fork(after_in_child=forget)
