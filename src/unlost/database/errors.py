"""A database's failures as ours."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from unlost.errors import StoreUnavailable

#: PostgreSQL: lock not available, deadlock detected, serialization failure
#: (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_SQLSTATES = frozenset({"55P03", "40P01", "40001"})
#: MariaDB: lock wait timeout (NOWAIT too), deadlock, record has changed since last read
#: (https://mariadb.com/kb/en/mariadb-error-codes/).
_NUMBERS = frozenset({1205, 1213, 1020})


@contextmanager
def translated() -> Iterator[None]:
    """Turn what the database raises inside the block into :class:`StoreUnavailable`.

    A violated constraint passes as it is: it is the fault of the rows, not of the store.
    """
    try:
        yield
    except IntegrityError:
        raise
    except DBAPIError as exc:
        raise StoreUnavailable(f"the store failed: {exc.orig}") from exc
    except SQLAlchemyError as exc:
        raise StoreUnavailable(f"the store failed: {exc}") from exc


def is_contention(exc: DBAPIError) -> bool:
    """Whether another transaction was in the way: a lock, a deadlock, a conflict of versions."""
    return says_contention(exc.orig)


def says_contention(error: BaseException | None) -> bool:
    """Whether a driver's error says that another transaction was in the way."""
    if getattr(error, "sqlstate", None) in _SQLSTATES or _number(error) in _NUMBERS:
        return True
    # Extended codes have the primary one in their low byte (https://www.sqlite.org/rescode.html).
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def is_passing(exc: DBAPIError) -> bool:
    """Whether the same statements may well succeed if they are tried again: contention, a lost connection."""
    return bool(exc.connection_invalidated) or is_contention(exc)


def _number(error: BaseException | None) -> int | None:
    arguments = getattr(error, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else None
