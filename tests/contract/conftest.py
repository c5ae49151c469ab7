"""A ledger in a temporary file, for each test its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ledgers import (
    BootClock,
    opened,
)
from unlost.database import sqlite
from unlost.idempotency.sql import SqlStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the database is."""
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[SqlStore]:
    """Return an open store."""
    with opened(path) as store:
        yield store


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> BootClock:
    """Return the store's clock."""
    clock = BootClock()
    monkeypatch.setattr(sqlite, "boot_time", clock)
    return clock
