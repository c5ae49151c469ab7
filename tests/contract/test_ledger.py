"""What a ledger promises, asked of the SQL store on a real file."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from operator import attrgetter
from pathlib import Path

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

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
)
from tests.support.processes import PATIENCE
from unlost.core.headers import Failure
from unlost.core.ids import Generation, MessageId
from unlost.core.settlement import AlreadyDone, Delivery, Held, Limits, Resend, Row, Run, State, Superseded
from unlost.errors import ConfigurationError, LeaseLost, StoreError, StoreUnavailable
from unlost.idempotency import sql
from unlost.idempotency.sql import SqlStore

FAILURE = Failure("retry", "shop.Timeout", "slow \ud800 ü", "Traceback", "host:1", 7)
REDRIVEN = Generation(1, 1)


class Base(DeclarativeBase):
    """The business tables."""


class Payment(Base):
    """A business row."""

    __tablename__ = "payments"
    id: Mapped[int] = mapped_column("rowid", primary_key=True)
    amount: Mapped[int]


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
    monkeypatch.setattr(sql, "boot_time", clock)
    return clock


def read(store: SqlStore, message: MessageId = MESSAGE) -> Row:
    """Return a row that must be there."""
    row = store.read(message)
    assert row is not None
    return row


# --- acquire


def test_a_new_message_is_leased(store: SqlStore, clock: BootClock) -> None:
    """The first delivery is granted a lease, and the row says by whom and until when."""
    row = granted(store, holder="me")

    assert read(store) == row
    assert (row.state, row.generation, row.holder) == (State.LEASED, FIRST, "me")
    assert row.expires == clock.seconds + LEASE.total_seconds()


def test_a_message_nobody_acquired_has_no_row(store: SqlStore) -> None:
    """Absence is reported as absence."""
    assert store.read(MESSAGE) is None


def test_a_second_acquire_is_held(store: SqlStore, clock: BootClock) -> None:
    """While the lease lives a copy is held for its rest, and nothing is written."""
    row = granted(store)
    clock.seconds += 5

    assert acquire(store) == Held(10.0)
    assert read(store) == row


def test_an_expired_lease_is_taken_over(store: SqlStore, clock: BootClock) -> None:
    """Expiry permits a takeover even from a living holder, and is counted."""
    first = granted(store)
    clock.seconds += 15

    second = granted(store)

    assert second.token > first.token
    assert second.lost == 1


def test_the_lease_of_an_earlier_boot_is_taken_over(store: SqlStore, clock: BootClock) -> None:
    """After a reboot the clock begins anew, so an old lease would otherwise hold for the old uptime."""
    granted(store, holder="nonce@old-container/00000000/1/7/99")
    clock.seconds = 1.0

    assert granted(store).lost == 1


def test_messages_do_not_touch_each_other(store: SqlStore) -> None:
    """Task, id and nesting make the message; each has a lease of its own."""
    others = [MessageId("shop.charge", "n"), MessageId("shop.refund", "m"), MessageId("shop.charge", "m", 1)]
    granted(store)

    assert all(isinstance(acquire(store, other), Run) for other in others)


def test_poison_is_recorded(store: SqlStore, clock: BootClock) -> None:
    """A message that crashed too often is decided dead in the same transaction that found it so."""
    granted(store, holder="me")
    store.end_crashed("me")

    admission = store.acquire(
        Delivery(message=MESSAGE, generation=FIRST, holder="next"), lease=LEASE, limits=Limits(max_crashes=1)
    )

    assert isinstance(admission, Resend)
    assert read(store) == admission.row
    assert read(store).state is State.DEAD


# --- done


def test_done_is_done(store: SqlStore, clock: BootClock) -> None:
    """A completed message keeps its result and is never run again, not even redriven."""
    store.complete(MESSAGE, granted(store), '{"paid": 5}')
    clock.seconds += 1000

    for generation in (FIRST, REDRIVEN):
        admission = acquire(store, generation=generation)
        assert isinstance(admission, AlreadyDone)
        assert admission.row.result == '{"paid": 5}'


def test_a_result_may_be_nothing(store: SqlStore) -> None:
    """No result is kept as no result."""
    store.complete(MESSAGE, granted(store), None)

    assert read(store).result is None


def test_done_stays_done(store: SqlStore) -> None:
    """No write of a holder, however late, turns a done message into anything else."""
    row = granted(store, holder="me")
    store.complete(MESSAGE, row, "1")
    done = read(store)

    for late in (
        lambda: store.complete(MESSAGE, row, "2"),
        lambda: store.decide_waiting(MESSAGE, row, due_ms=1, failure=FAILURE),
        lambda: store.decide_dead(MESSAGE, row, failure=FAILURE),
    ):
        with pytest.raises(LeaseLost):
            late()
    assert not store.end_crashed("me")
    assert not store.release("me")
    store.renew(["me"], LEASE)
    assert read(store) == done


def test_completion_asks_the_token_not_the_time(store: SqlStore, clock: BootClock) -> None:
    """A holder whose lease expired may still complete as long as nobody took over."""
    row = granted(store)
    clock.seconds += 1000

    store.complete(MESSAGE, row, None)

    assert read(store).state is State.DONE


# --- decisions


def test_a_retry_is_recorded(store: SqlStore) -> None:
    """Deciding a retry ends the lease; all of the decision comes back from the store as it was written."""
    decided = store.decide_waiting(MESSAGE, granted(store), due_ms=42, failure=FAILURE)

    assert read(store) == decided
    assert (decided.state, decided.generation, decided.due_ms) == (State.WAITING, Generation(0, 2), 42)
    assert (decided.failure, decided.sent, decided.holder) == (FAILURE, False, None)


def test_a_letter_is_recorded(store: SqlStore) -> None:
    """Deciding a letter ends the lease for good."""
    decided = store.decide_dead(MESSAGE, granted(store), failure=FAILURE)

    assert read(store) == decided
    assert (decided.state, decided.generation, decided.failure) == (State.DEAD, FIRST, FAILURE)


@pytest.mark.parametrize("expire", [True, False], ids=["taken over", "released and taken"])
def test_a_fenced_holder_writes_nothing(store: SqlStore, clock: BootClock, expire: bool) -> None:
    """After a takeover every write of the earlier holder fails and changes nothing."""
    stale = granted(store, holder="me")
    if expire:
        clock.seconds += 15
    else:
        store.release("me")
    current = granted(store)

    for late in (
        lambda: store.complete(MESSAGE, stale, None),
        lambda: store.decide_waiting(MESSAGE, stale, due_ms=1, failure=FAILURE),
        lambda: store.decide_dead(MESSAGE, stale, failure=FAILURE),
    ):
        with pytest.raises(LeaseLost, match="m"):
            late()
    assert not store.end_crashed("me")
    assert not store.release("me")
    assert read(store) == current


def test_a_decision_ends_the_lease(store: SqlStore) -> None:
    """One attempt has one end: the second decision of a holder is refused."""
    row = granted(store)
    store.decide_waiting(MESSAGE, row, due_ms=1, failure=FAILURE)

    with pytest.raises(LeaseLost):
        store.decide_dead(MESSAGE, row, failure=FAILURE)
    with pytest.raises(LeaseLost):
        store.complete(MESSAGE, row, None)


def test_an_unsent_decision_is_resent_until_marked(store: SqlStore) -> None:
    """A redelivery repeats the publish of a decision until somebody marked it sent."""
    decided = store.decide_waiting(MESSAGE, granted(store), due_ms=1, failure=FAILURE)
    assert acquire(store) == Resend(decided)

    assert store.mark_sent(MESSAGE, str(decided.decision))
    assert isinstance(acquire(store), Superseded)


def test_a_late_mark_does_not_pass_for_a_later_decision(store: SqlStore) -> None:
    """A mark names the decision it is for: the same attempt's letter stays unsent."""
    retry = store.decide_waiting(MESSAGE, granted(store), due_ms=1, failure=FAILURE)
    letter = store.decide_dead(MESSAGE, granted(store, generation=retry.generation), failure=FAILURE)

    assert letter.generation == retry.generation
    assert not store.mark_sent(MESSAGE, str(retry.decision))
    assert not read(store).sent
    assert store.mark_sent(MESSAGE, str(letter.decision))
    assert read(store).sent


def test_a_mark_during_the_next_attempt_is_lost(store: SqlStore) -> None:
    """Once the next attempt runs there is no decision left to mark."""
    retry = store.decide_waiting(MESSAGE, granted(store), due_ms=1, failure=FAILURE)
    row = granted(store, generation=retry.generation)

    assert not store.mark_sent(MESSAGE, str(retry.decision))
    assert read(store) == row


def test_a_mark_is_for_one_message(store: SqlStore) -> None:
    """A decision's id says nothing about another message."""
    decided = store.decide_dead(MESSAGE, granted(store), failure=FAILURE)

    assert not store.mark_sent(MessageId("shop.charge", "n"), str(decided.decision))
    assert not read(store).sent


# --- renewal, crash, release


def test_renewal_extends_live_holders_only(store: SqlStore, clock: BootClock) -> None:
    """Of all holders named, those that hold a lease get a whole new one; the others nothing."""
    other, ended = MessageId("shop.charge", "n"), MessageId("shop.charge", "o")
    granted(store, holder="me")
    unnamed = granted(store, other, holder="unnamed")
    store.decide_dead(ended, granted(store, ended, holder="ended"), failure=FAILURE)
    before = read(store, ended)
    clock.seconds += 10

    store.renew(["me", "ended", "nobody"], LEASE)
    store.renew([], LEASE)

    assert read(store).expires == clock.seconds + 15
    assert read(store, other) == unnamed
    assert read(store, ended) == before


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


def test_a_crash_ends_the_lease_at_once(store: SqlStore) -> None:
    """A crash is counted once, and the next delivery runs without a wait and without a takeover."""
    granted(store, holder="me")

    assert store.end_crashed("me")
    assert not store.end_crashed("me")
    row = granted(store)
    assert (row.crashes, row.lost) == (1, 0)


def test_a_release_is_not_counted(store: SqlStore) -> None:
    """A holder that was stopped on purpose charges nobody."""
    granted(store, holder="me")

    assert store.release("me")
    assert not store.release("me")
    row = granted(store)
    assert (row.crashes, row.lost) == (0, 0)


def test_a_crash_after_the_decision_is_none(store: SqlStore) -> None:
    """A process that dies between decision and publish leaves the decision as it is."""
    decided = store.decide_waiting(MESSAGE, granted(store, holder="me"), due_ms=1, failure=FAILURE)

    assert not store.end_crashed("me")
    assert read(store) == decided


# --- unit of work


def test_rows_and_done_commit_together(store: SqlStore) -> None:
    """Business rows, the done record and its encoded result are there after the block."""
    row = granted(store)

    with store.unit_of_work(MESSAGE, row, lambda result: f"<{result}>") as work:
        pay(work)
        work.result = "paid"

    assert payments(store) == [5]
    assert (read(store).state, read(store).result) == (State.DONE, "<paid>")


def test_nothing_is_seen_before_the_commit(store: SqlStore, path: Path) -> None:
    """Inside the block neither the row nor done is visible to others."""
    with store.unit_of_work(MESSAGE, granted(store), str) as work:
        pay(work)
        reader = sqlite3.connect(path)
        assert reader.execute("SELECT count(*) FROM payments").fetchone() == (0,)
        assert reader.execute("SELECT state FROM unlost_messages").fetchone() == ("leased",)
        reader.close()


def test_an_exception_rolls_all_back(store: SqlStore) -> None:
    """A body that raises leaves no row, and the lease as it was."""
    row = granted(store)

    def body() -> None:
        with store.unit_of_work(MESSAGE, row, str) as work:
            pay(work)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        body()

    assert payments(store) == []
    assert read(store) == row


def test_a_result_that_cannot_be_encoded_rolls_all_back(store: SqlStore) -> None:
    """What the encoder raises is raised as it is, and nothing is committed."""
    row = granted(store)

    def encode(_result: object) -> str:
        raise TypeError("not JSON")

    with pytest.raises(TypeError), store.unit_of_work(MESSAGE, row, encode) as work:
        pay(work)

    assert payments(store) == []
    assert read(store) == row


def test_a_stale_token_rolls_all_back(store: SqlStore, clock: BootClock) -> None:
    """The effect of a holder that was taken over is undone with its transaction."""
    stale = granted(store)
    clock.seconds += 15
    current = granted(store)

    with pytest.raises(LeaseLost), store.unit_of_work(MESSAGE, stale, str) as work:
        pay(work)

    assert payments(store) == []
    assert read(store) == current


def test_a_commit_inside_commits_nothing_early(store: SqlStore) -> None:
    """``session.commit()`` in a body is harmless: only the end of the block commits."""
    row = granted(store)

    def body() -> None:
        with store.unit_of_work(MESSAGE, row, str) as work:
            pay(work)
            work.session.commit()
            raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        body()

    assert payments(store) == []
    assert read(store) == row


@pytest.mark.parametrize("end", ["session.rollback", "connection.rollback"])
def test_a_rollback_inside_never_completes(store: SqlStore, end: str) -> None:
    """A body that rolls back and goes on is an error: it does not end as done without its rows."""
    row = granted(store)

    def body() -> None:
        with store.unit_of_work(MESSAGE, row, str) as work:
            pay(work)
            attrgetter(end)(work)()
            pay(work, 6)

    with pytest.raises(StoreError, match="begin_nested"):
        body()

    assert payments(store) == []
    assert read(store) == row


def test_a_part_may_be_rolled_back(store: SqlStore) -> None:
    """A savepoint that fails takes only its own rows with it."""
    with store.unit_of_work(MESSAGE, granted(store), str) as work:
        pay(work)
        with pytest.raises(IntegrityError), work.session.begin_nested():
            pay(work)
        pay(work, 6)

    assert payments(store) == [5, 6]
    assert read(store).state is State.DONE


def test_a_violated_constraint_is_the_tasks_error(store: SqlStore) -> None:
    """What business rows violate is not the store's failure, so the task's retry policy decides."""
    row = granted(store)

    with pytest.raises(IntegrityError), store.unit_of_work(MESSAGE, row, str) as work:
        work.session.add_all([Payment(id=1, amount=5), Payment(id=2, amount=5)])

    assert payments(store) == []
    assert read(store) == row


def test_a_commit_that_fails_is_rolled_back(store: SqlStore, path: Path) -> None:
    """A deferred constraint shows at COMMIT, undoes the done record as well, and leaves no lock behind."""
    row = granted(store)
    with store.engine.begin() as connection:
        connection.execute(
            text("CREATE TABLE refunds (of REFERENCES payments(amount) DEFERRABLE INITIALLY DEFERRED)")
        )
    event.listen(
        store.engine, "checkout", lambda connection, *_: connection.execute("PRAGMA foreign_keys=ON")
    )

    with pytest.raises(IntegrityError), store.unit_of_work(MESSAGE, row, str) as work:
        work.session.execute(text("INSERT INTO refunds VALUES (7)"))

    assert read(store) == row
    other = sqlite3.connect(path, timeout=0)
    other.execute("BEGIN IMMEDIATE")
    other.close()


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
    monkeypatch.setattr(sql, "LOCK_PATIENCE", timedelta(milliseconds=50))
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


# --- the URL


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://shop:s3cret@db/shop",
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
