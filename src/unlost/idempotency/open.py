"""Which store a URL names.

What a store needs is imported when it is chosen: SQLAlchemy alone takes a worker a third of the CPU time of
its start, and whoever keeps the ledger in Redis does without.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from unlost.core.ports import Ledger
from unlost.database.schemes import SUPPORTED, is_redis
from unlost.database.schemes import is_supported as is_sql
from unlost.errors import ConfigurationError
from unlost.idempotency.memory import MemoryStore
from unlost.idempotency.none import NO_STORE, NoStore
from unlost.idempotency.redis import RedisStore

if TYPE_CHECKING:
    from unlost.database.database import Database


def open_store(url: str, *, lease: timedelta = timedelta(seconds=15), unguarded: bool = False) -> Ledger:
    """Return the store that a URL names; nothing is connected to yet.

    Args:
        url: ``sqlite:///PATH``, ``postgresql+psycopg://...``, ``mariadb+pymysql://...``, ``redis://...``,
            ``memory://`` for tests in one process, or ``none://`` for no store.
        lease: How long a process may stand still while it holds a row locked.
        unguarded: Switch the lease off, for runs that prove that it is needed; SQL only.

    Raises:
        ConfigurationError: No store has that scheme, or its driver is not installed.
    """
    if unguarded:
        return _sql_store(url, lease, unguarded=True)
    scheme = url.partition(":")[0]
    if is_redis(url):
        return RedisStore(url)
    if url == NO_STORE:
        return NoStore()
    if scheme == "memory":
        return MemoryStore()
    # What is no URL may hold a password: it is not repeated.
    if "://" in url and not is_sql(url):
        raise ConfigurationError(
            f"no store has the scheme {scheme}: use {SUPPORTED}, redis://HOST:PORT/NUMBER, "
            "none:// for none, or memory:// in tests"
        )
    return _sql_store(url, lease, unguarded=False)


def _sql_store(url: str, lease: timedelta, *, unguarded: bool) -> Ledger:
    from unlost.idempotency.sql import SqlStore, UnguardedStore

    return (UnguardedStore if unguarded else SqlStore)(url, stall=lease)


def database_of(ledger: Ledger) -> Database | None:
    """Return the SQL database that a ledger is kept in, where other tables may stand beside it."""
    return getattr(ledger, "database", None)


def has_one_writer(ledger: Ledger) -> bool:
    """Whether an open unit of work keeps everybody else from writing, this very thread too."""
    database = database_of(ledger)
    return database is not None and database.dialect.single_host
