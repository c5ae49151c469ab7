"""Where a URL keeps breakers and limits; what that needs is imported when it is chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unlost.core.ports import Throttle
from unlost.database.schemes import is_redis, is_supported
from unlost.errors import ConfigurationError

if TYPE_CHECKING:
    from unlost.database.database import Database


def open_throttle(url: str, database: Database | None = None) -> Throttle:
    """Open the shared state of breakers and limits, and make ready what it needs; Redis is not asked yet.

    Args:
        url: The store's.
        database: The one of that URL, if it is open already.

    Raises:
        ConfigurationError: The store keeps nothing, or what it needs is not installed.
        StoreUnavailable: The database cannot be reached.
    """
    throttle = _throttle(url, database)
    throttle.create_schema()
    return throttle


def _throttle(url: str, database: Database | None) -> Throttle:
    if database is not None or is_supported(url):
        from unlost.database.database import Database
        from unlost.throttle.sql import SqlThrottle

        return SqlThrottle(database if database is not None else Database(url))
    if is_redis(url):
        from unlost.throttle.redis import RedisThrottle

        return RedisThrottle(url)
    if url.partition(":")[0] == "memory":
        from unlost.throttle.memory import MemoryThrottle

        return MemoryThrottle()
    raise ConfigurationError("breakers and limits need a store that all workers share: a database, or Redis")
