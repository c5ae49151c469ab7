"""One file, many processes: races, deaths, forks and locks; and which URLs name such a file."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, event

from tests.support.ledgers import (
    FIRST,
    LEASE,
    MESSAGE,
    BootClock,
    acquire,
    die_in_unit_of_work,
    granted,
    opened,
    pay,
    payments,
    race,
    read,
)
from tests.support.processes import PATIENCE
from unlost.core.ids import MessageId
from unlost.core.settlement import AlreadyDone, Held, Row, State
from unlost.database import dialect
from unlost.errors import ConfigurationError, LeaseLost, StoreUnavailable
from unlost.idempotency.sql import SqlStore

# --- processes


def test_one_of_many_processes_is_granted(path: Path) -> None:
    """Eight processes that create the tables and acquire fifty messages at once get each granted once."""
    assert race(path, processes=8, messages=50) == [1] * 50


def test_a_killed_process_leaves_no_row(store: SqlStore, path: Path) -> None:
    """A process killed in its transaction leaves nothing of it, and is taken over at once."""
    assert die_in_unit_of_work(path) == -signal.SIGKILL

    assert payments(store) == []
    row = granted(store)
    assert (row.lost, row.crashes) == (1, 0)


def test_a_fork_shares_no_connection(store: SqlStore) -> None:
    """A forked child sees the ledger through connections of its own, and the parent goes on with its."""
    row = granted(store)
    parents = open_files(store)
    assert parents

    pid = os.fork()
    if pid == 0:
        os._exit(_exit_code(lambda: not open_files(store) and isinstance(acquire(store), Held)))
    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert read(store) == row


def open_files(store: SqlStore) -> list[str]:
    """Return the descriptors of this process that are open on the store's file."""
    return [
        entry.name
        for entry in Path("/proc/self/fd").iterdir()
        if entry.exists() and str(store.engine.url.database) in str(entry.readlink())
    ]


def _exit_code(holds: Callable[[], bool]) -> int:
    """Return what a child exits with; an exception must not climb into its copy of the test run."""
    try:
        return 0 if holds() else 1
    except BaseException:  # noqa: BLE001
        return 2


def test_a_fork_waits_for_a_transaction(store: SqlStore, path: Path) -> None:
    """A fork during another thread's transaction waits for its end, so the child inherits no lock."""
    row, inside, done = granted(store), threading.Event(), threading.Event()

    def work() -> None:
        with store.unit_of_work(MESSAGE, row, str) as unit:
            pay(unit)
            inside.set()
            done.wait(PATIENCE.total_seconds())

    worker = threading.Thread(target=work)
    worker.start()
    inside.wait(PATIENCE.total_seconds())
    end = threading.Timer(0.2, done.set)
    end.start()
    pid = os.fork()
    if pid == 0:
        os._exit(_exit_code(lambda: payments(store) == [5] and isinstance(acquire(store), AlreadyDone)))
    _, status = os.waitpid(pid, 0)
    worker.join()
    end.join()

    assert os.waitstatus_to_exitcode(status) == 0


def test_a_locked_store_is_waited_for(store: SqlStore, path: Path) -> None:
    """An acquire that meets another writer is granted once that writer is through."""
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    through = threading.Timer(0.2, lambda: writer.execute("ROLLBACK"))
    through.start()

    granted(store)

    assert through.finished.is_set()
    through.join()
    writer.close()


def test_a_store_locked_for_too_long_is_unavailable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wait for a lock has an end, and its error says what failed."""
    monkeypatch.setattr(dialect, "LOCK_PATIENCE", timedelta(milliseconds=50))
    with opened(path) as store:
        row = granted(store)
        writer = sqlite3.connect(path, isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        for ask in (
            lambda: acquire(store),
            lambda: store.complete(MESSAGE, row, None),
            lambda: store.renew(["me"], LEASE),
            lambda: store.end_crashed("me"),
            lambda: store.mark_sent(MESSAGE, "d"),
            lambda: store.unit_of_work(MESSAGE, row, str).__enter__(),
        ):
            with pytest.raises(StoreUnavailable, match="locked"):
                ask()
        writer.close()
        assert read(store) == row


def test_a_store_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    """A missing directory is the store's failure wherever it is noticed."""
    store = SqlStore(f"sqlite:///{tmp_path}/missing/ledger.sqlite")
    row = Row(state=State.LEASED, generation=FIRST, token=1)

    for ask in (
        store.create_schema,
        lambda: acquire(store),
        lambda: store.read(MESSAGE),
        lambda: store.unit_of_work(MESSAGE, row, str).__enter__(),
    ):
        with pytest.raises(StoreUnavailable, match="unable to open"):
            ask()


def test_commits_survive_a_power_cut(store: SqlStore) -> None:
    """Every connection has a write-ahead log and syncs it at each commit."""
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


# --- the clock


def test_the_lease_of_an_earlier_boot_is_taken_over(store: SqlStore, clock: BootClock) -> None:
    """After a reboot the clock begins anew, so an old lease would otherwise hold for the old uptime."""
    granted(store, holder="nonce@old-container/00000000/1/7/99")
    clock.seconds = 1.0

    assert granted(store).lost == 1


def test_renewal_counts_from_when_the_lock_was_had(store: SqlStore, clock: BootClock, path: Path) -> None:
    """A renewal that waited for another writer does not write an expiry that is as old as the wait."""
    granted(store, holder="me")
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    waiting = threading.Event()

    def renew() -> None:
        waiting.set()
        store.renew(["me"], LEASE)

    renewal = threading.Thread(target=renew)
    renewal.start()
    waiting.wait(PATIENCE.total_seconds())
    clock.seconds += 14
    writer.execute("ROLLBACK")
    writer.close()
    renewal.join()

    assert read(store).expires == clock.seconds + 15


# --- the URL


@pytest.mark.parametrize(
    "url",
    [
        "oracle+oracledb://shop:s3cret@db/shop",
        "sqlite+aiosqlite:////tmp/ledger.sqlite",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file::memory:?uri=true",
        "sqlite:///file:/tmp/ledger.sqlite?uri=true",
    ],
)
def test_other_databases_are_refused(url: str) -> None:
    """A store that is not supported is refused by name, with the way out and without its password."""
    with pytest.raises(ConfigurationError, match="use sqlite:///PATH") as refused:
        SqlStore(url)

    assert "not supported" in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_no_url_is_refused() -> None:
    """What is no URL at all is a configuration error too, and is not repeated: it may hold a password."""
    with pytest.raises(ConfigurationError, match="use sqlite:///PATH") as refused:
        SqlStore("shop:s3cret")

    assert "s3cret" not in str(refused.value)


def test_a_relative_path_is_fixed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that changes its directory keeps its ledger."""
    monkeypatch.chdir(tmp_path)
    store = SqlStore("sqlite:///ledger.sqlite")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.create_schema()
    store.engine.dispose()

    assert (tmp_path / "ledger.sqlite").exists()
    assert str(tmp_path) in repr(store)


def test_a_lease_is_not_synced_and_an_end_is(store: SqlStore) -> None:
    """A power cut takes the holder along with its lease, so only what ends a message waits for the disk."""
    levels: list[int] = []

    def note(connection: Connection) -> None:
        levels.append(connection.exec_driver_sql("PRAGMA synchronous").scalar_one())

    event.listen(store.engine, "commit", note)
    normal, full = 1, 2

    row = granted(store)
    assert levels == [normal]
    store.complete(MESSAGE, row, None)
    store.cancel(MessageId("shop.charge", "other"), FIRST)
    with pytest.raises(LeaseLost):
        store.complete(MESSAGE, row, "another")
    assert set(levels[1:]) == {full}


def test_a_read_waits_for_no_writer(store: SqlStore) -> None:
    """Inside a unit of work the same thread may ask what is known of another message."""
    store.complete(MESSAGE, granted(store), "5")
    other = MessageId("shop.charge", "other")
    with store.unit_of_work(other, granted(store, other), str) as work:
        pay(work)
        assert read(store).result == "5"
