"""Where the effects of a user's own application are read: a table, or a log file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from unlost.errors import HarnessError


def effects_in_table(url: str, query: str) -> Iterator[tuple[str, int]]:
    """Read effects with a query: the first column names the effect, the second says when.

    Args:
        url: SQLAlchemy URL of the database.
        query: Its time is an aware or UTC ``datetime``, ISO 8601 text, epoch seconds, or (an integer too
            large for those) epoch nanoseconds. One row for each effect: what happened twice must be there
            twice, so no ``distinct`` and no unique constraint that swallows the second.

    Raises:
        HarnessError: The query failed, or its rows are not of this shape.
    """
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            rows = connection.execute(text(query)).all()
    except SQLAlchemyError as exc:
        raise HarnessError(f"effects cannot be read with {query!r}: {exc}") from exc
    finally:
        engine.dispose()
    for row in rows:
        if len(row) < 2:
            raise HarnessError(f"{query!r} must return name and time of each effect")
        yield str(row[0]), nanoseconds(row[1])


def effects_in_log(path: Path, pattern: str) -> Iterator[tuple[str, int]]:
    """Read effects from the lines of a log file.

    Args:
        path: The file; no file has no effects.
        pattern: Regular expression with the groups ``value`` and ``time``, the latter as above.

    Raises:
        HarnessError: The pattern lacks a group, or a time cannot be read.
    """
    expression = re.compile(pattern)
    if missing := {"value", "time"} - expression.groupindex.keys():
        raise HarnessError(f"the pattern {pattern!r} has no group named {' and '.join(sorted(missing))}")
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    for found in filter(None, map(expression.search, lines)):
        yield found["value"], nanoseconds(found["time"])


#: Epoch seconds of the year 5138; an integer beyond it is nanoseconds.
_SECONDS_END = 10**11


def nanoseconds(moment: Any) -> int:
    """Return a moment as epoch nanoseconds; a time without a zone is UTC.

    Raises:
        HarnessError: It is no moment.
    """
    if isinstance(moment, str):
        moment = _parsed(moment)
    if isinstance(moment, datetime):
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return int(aware.timestamp() * 1e9)
    try:
        return int(moment) if float(moment) > _SECONDS_END else int(float(moment) * 1e9)
    except (TypeError, ValueError) as exc:
        raise HarnessError(f"{moment!r} is no time of an effect") from exc


def _parsed(text: str) -> datetime | str:
    try:
        return datetime.fromisoformat(text.replace(",", "."))
    except ValueError:
        return text
