"""The shared state of breakers and limits in an SQL database. All time is the database's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, select, update

from unlost.core.breaker import Circuit, CircuitState
from unlost.core.limits import Grant, Limit, granted, refunded
from unlost.database.database import Database
from unlost.database.migrations import migrate
from unlost.throttle.circuits import Circuits
from unlost.throttle.schema import MIGRATIONS, PART, circuits, limits, slots


class SqlThrottle(Circuits):
    """Circuits and limits of one database.

    Every change locks its row, so that what a worker decides holds for all; the row is held for a moment
    only, and nothing is published or run meanwhile. All methods raise
    :class:`unlost.errors.StoreUnavailable` when the database cannot be asked. A crash before a commit
    leaves everything as it was.

    Args:
        database: Where.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def create_schema(self) -> None:
        """Bring the tables to this release's version. Safe when several processes start at once."""
        migrate(self.database, PART, MIGRATIONS)

    def circuit(self, name: str) -> Circuit:
        """Return a circuit; closed when nobody has ever counted anything."""
        with self.database.transaction() as connection:
            return _read(connection, name)

    def circuits(self) -> dict[str, tuple[Circuit, float]]:
        """Return every circuit by name, and how many seconds from now its ``until`` is."""
        query = select(circuits, self._now().label("now")).order_by(circuits.c.name)
        with self.database.transaction() as connection:
            rows = connection.execute(query).mappings().all()
        return {row["name"]: (_to_circuit(row), row["until"] - row["now"]) for row in rows}

    def permits(self, limit: Limit, worker: str, *, wanted: int, running: int, lease: timedelta) -> Grant:
        """Give a worker permits to start messages, and note how many it runs then."""
        with self._locked(limits, limit.name, {"paid_until": 0.0}) as connection:
            now, paid = connection.execute(
                select(self._now(), limits.c.paid_until).where(limits.c.name == limit.name)
            ).one()
            others = connection.scalar(
                select(func.coalesce(func.sum(slots.c.taken), 0)).where(
                    slots.c.name == limit.name, slots.c.worker != worker, slots.c.expires > now
                )
            )
            given = granted(
                limit, wanted=wanted, taken=int(others or 0) + running, paid_until=paid, now=float(now)
            )
            _write(connection, limits, limit.name, {"paid_until": given.paid_until})
            self._note(connection, limit, worker, running + given.permits, float(now) + lease.total_seconds())
        return given

    def refund(self, limit: Limit, unused: int) -> None:
        """Take back permits that no message was found for."""
        with self._locked(limits, limit.name, {"paid_until": 0.0}) as connection:
            paid = connection.scalar(select(limits.c.paid_until).where(limits.c.name == limit.name))
            paid_until = refunded(limit, unused=unused, paid_until=float(paid or 0.0))
            _write(connection, limits, limit.name, {"paid_until": paid_until})

    def _note(self, connection: Connection, limit: Limit, worker: str, taken: int, expires: float) -> None:
        mine = and_(slots.c.name == limit.name, slots.c.worker == worker)
        if taken and limit.concurrent is not None:
            values = {"name": limit.name, "worker": worker, "taken": taken, "expires": expires}
            connection.execute(self.database.dialect.upsert(slots, values))
        else:
            connection.execute(delete(slots).where(mine))

    def _turn(self, name: str, change: Callable[[Circuit, float], Circuit]) -> Circuit:
        with self._locked(circuits, name, _to_columns(Circuit())) as connection:
            now = float(connection.scalar(select(self._now())) or 0.0)
            before = _read(connection, name)
            after = change(before, now)
            if after != before:
                _write(connection, circuits, name, _to_columns(after))
        return after

    @contextmanager
    def _locked(self, table: Table, name: str, first: dict[str, Any]) -> Iterator[Connection]:
        """Open a transaction that holds the row of that name locked; it is made if there is none."""
        with self.database.transaction() as connection:
            connection.execute(self.database.dialect.insert_missing(table, {"name": name, **first}))
            connection.execute(select(table.c.name).where(table.c.name == name).with_for_update())
            yield connection

    def _now(self) -> ColumnElement[float]:
        return self.database.dialect.clock()


def _read(connection: Connection, name: str) -> Circuit:
    query = select(circuits).where(circuits.c.name == name)
    row = connection.execute(query).mappings().one_or_none()
    return Circuit() if row is None else _to_circuit(row)


def _write(connection: Connection, table: Table, name: str, values: dict[str, Any]) -> None:
    connection.execute(update(table).where(table.c.name == name).values(**values))


def _to_columns(circuit: Circuit) -> dict[str, Any]:
    return {**asdict(circuit), "state": circuit.state.value}


def _to_circuit(row: Any) -> Circuit:
    fields = {name: row[name] for name in Circuit.__dataclass_fields__}
    return Circuit(**{**fields, "state": CircuitState(fields["state"])})
