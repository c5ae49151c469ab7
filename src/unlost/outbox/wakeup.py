"""What a relay with nothing to do waits for: a commit (PostgreSQL tells of it), or the next look."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from typing import Any, Protocol

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from unlost.outbox.writer import CHANNEL

logger = logging.getLogger(__name__)

#: How soon a relay that listens sees that it shall stop.
SLICE = 0.25


class Wakeup(Protocol):
    """Ends a wait early when there may be something to do."""

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Return after so many seconds, when something was committed, or when ``stop`` is set."""

    def close(self) -> None:
        """Give back what it holds."""


class Poll:
    """Nobody tells: look again after a while."""

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Return after so many seconds, or when ``stop`` is set."""
        stop.wait(seconds)

    def close(self) -> None:
        """Hold nothing."""


class Listen:
    """PostgreSQL's ``LISTEN`` on a connection of its own; without it, a mere poll.

    A notice that comes while the relay is busy is kept by the connection, so none is missed between a look
    and the wait that follows it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Any = None
        self._errors: tuple[type[Exception], ...] = (SQLAlchemyError, engine.dialect.loaded_dbapi.Error)

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Return after so many seconds, when a writer has committed, or when ``stop`` is set."""
        end = time.monotonic() + seconds
        while not stop.is_set() and (left := end - time.monotonic()) > 0:
            if self._heard(min(left, SLICE), stop):
                return

    def _heard(self, seconds: float, stop: threading.Event) -> bool:
        try:
            if self._connection is None:
                self._listen()
                # What was committed before this moment told nobody: look at once.
                return True
            heard = list(self._connection.notifies(timeout=seconds, stop_after=1))
            # One look serves all that have come meanwhile.
            list(self._connection.notifies(timeout=0))
        except self._errors as exc:
            logger.warning("not told of commits, looking every so often instead: %s", exc)
            self.close()
            stop.wait(seconds)
            return False
        return bool(heard)

    def _listen(self) -> None:
        fairy = self._engine.raw_connection()
        self._connection = fairy.driver_connection
        # Out of the pool: nobody else may have it, and it has no transactions.
        fairy.detach()
        self._connection.autocommit = True
        self._connection.execute(f"LISTEN {CHANNEL}")

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            with suppress(*self._errors):
                self._connection.close()
            self._connection = None


def wakeup_for(engine: Engine) -> Wakeup:
    """Return the best that a database and its driver offer."""
    if (engine.dialect.name, engine.dialect.driver) == ("postgresql", "psycopg"):
        return Listen(engine)
    return Poll()
