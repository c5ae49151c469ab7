"""Which store a URL names."""

from __future__ import annotations

from datetime import timedelta

from unlost.core.ports import Ledger
from unlost.database.database import SUPPORTED
from unlost.database.database import is_supported as is_sql
from unlost.errors import ConfigurationError
from unlost.idempotency.memory import MemoryStore
from unlost.idempotency.none import NO_STORE, NoStore
from unlost.idempotency.redis import RedisStore
from unlost.idempotency.sql import SqlStore, UnguardedStore

_REDIS = ("redis", "rediss", "unix")


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
        return UnguardedStore(url, stall=lease)
    scheme = url.partition(":")[0]
    if scheme in _REDIS:
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
    return SqlStore(url, stall=lease)
