"""Private database servers for tests: each kind is started once for a run, when the first test asks.

A test that asks for ``database_url`` runs on SQLite, PostgreSQL and MariaDB, each time in an empty
database. What is not installed is skipped with the reason, and fails under ``--require-broker``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from sqlalchemy import update

from tests.support.brokers import REQUIRE
from unlost.core.ports import Ledger
from unlost.idempotency.memory import MemoryStore
from unlost.idempotency.redis import RedisStore
from unlost.idempotency.schema import messages
from unlost.idempotency.sql import SqlStore
from unlost.testing.stores import StoreServer, missing, start_store

SQL = ("sqlite", "postgresql", "mariadb")
ALL = ("memory", "redis", *SQL)

Servers = Callable[[str], StoreServer]


@pytest.fixture(scope="session")
def store_servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """Return a function from a kind to the server that all tests share: leave it running."""
    started: dict[str, StoreServer] = {}
    with ExitStack() as stack:

        def server(kind: str) -> StoreServer:
            require(kind, request.config)
            if kind not in started:
                started[kind] = stack.enter_context(start_store(kind, os.environ))
            return started[kind]

        yield server


@pytest.fixture(params=SQL)
def database_url(request: pytest.FixtureRequest, store_servers: Servers, tmp_path: Path) -> Iterator[str]:
    """Return the URL of an empty SQL database, of each kind in turn."""
    with ExitStack() as stack:
        yield fresh_url(request.param, store_servers, tmp_path, stack)


@pytest.fixture(params=SQL[1:])
def server_url(request: pytest.FixtureRequest, store_servers: Servers, tmp_path: Path) -> Iterator[str]:
    """Return the URL of an empty database of each kind that has a server."""
    with ExitStack() as stack:
        yield fresh_url(request.param, store_servers, tmp_path, stack)


def fresh_url(kind: str, servers: Servers, directory: Path, stack: ExitStack) -> str:
    """Return the URL of an empty store of a kind; it goes when the stack is unwound."""
    if kind == "memory":
        return "memory://"
    if kind == "sqlite":
        return f"sqlite:///{directory}/store.sqlite"
    return stack.enter_context(servers(kind).fresh())


def require(kind: str, config: pytest.Config) -> None:
    """Skip the test if no server of this kind can be had; under ``--require-broker`` fail it."""
    reason = missing(kind, os.environ)
    if reason is None:
        return
    if config.getoption(REQUIRE):
        pytest.fail(f"{REQUIRE}: no {kind}: {reason}", pytrace=False)
    pytest.skip(f"no {kind}: {reason}")


def time_machine(ledger: Ledger) -> Callable[[float], None]:
    """Return what makes all leases in a ledger older by so many seconds."""
    if isinstance(ledger, SqlStore):
        return lambda seconds: _age_rows(ledger, seconds)
    if isinstance(ledger, RedisStore):
        return lambda seconds: _age_texts(ledger, seconds)
    if isinstance(ledger, MemoryStore):
        return lambda seconds: _age_memory(ledger, seconds)
    raise TypeError(f"no time machine for {ledger!r}")


def _age_rows(store: SqlStore, seconds: float) -> None:
    older = update(messages).where(messages.c.expires > 0).values(expires=messages.c.expires - seconds)
    with store.database.transaction() as connection:
        connection.execute(older)


def _age_texts(store: RedisStore, seconds: float) -> None:
    with redis.Redis(connection_pool=store.server._pool) as client:
        for key in client.scan_iter("{unlost}:*[[]*"):
            expires, _, rest = str(client.get(key)).partition(" ")
            if float(expires):
                client.set(key, f"{float(expires) - seconds:017.6f} {rest}")


def _age_memory(store: MemoryStore, seconds: float) -> None:
    for message, row in store._rows.items():
        if row.expires:
            store._rows[message] = row._replace(expires=row.expires - seconds)
