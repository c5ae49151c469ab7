"""Every store passes the suite that is exported for stores of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.stores import ALL, Servers, fresh_url, time_machine
from unlost.core.ports import Ledger
from unlost.idempotency.open import open_store
from unlost.testing.conformance import LedgerConformance, PassTime


class OurStore(LedgerConformance):
    """The suite on one of our stores."""

    kind = ""

    @pytest.fixture
    def ledger(self, store_servers: Servers, tmp_path: Path) -> Iterator[Ledger]:
        """Open an empty store."""
        with ExitStack() as stack:
            store = open_store(fresh_url(self.kind, store_servers, tmp_path, stack))
            store.create_schema()
            yield store
            store.close()

    @pytest.fixture
    def pass_time(self, ledger: Ledger) -> PassTime:
        """Age the leases instead of waiting."""
        return time_machine(ledger)


class TestMemory(OurStore):
    """The store in memory."""

    kind = "memory"


class TestRedis(OurStore):
    """Redis."""

    kind = "redis"


class TestSQLite(OurStore):
    """SQLite."""

    kind = "sqlite"
    can = frozenset({"unit_of_work"})


class TestPostgreSQL(OurStore):
    """PostgreSQL."""

    kind = "postgresql"
    can = frozenset({"unit_of_work"})


class TestMariaDB(OurStore):
    """MariaDB."""

    kind = "mariadb"
    can = frozenset({"unit_of_work"})


def test_every_kind_is_tried() -> None:
    """No store that a URL can name is left out."""
    assert {each.kind for each in OurStore.__subclasses__()} == set(ALL)
