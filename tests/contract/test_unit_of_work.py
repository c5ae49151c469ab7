"""Business rows and the done record are one transaction, whatever ends it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from tests.support.ledgers import (
    MESSAGE,
    BootClock,
    granted,
    pay,
    payments,
    read,
)
from unlost.core.settlement import State
from unlost.errors import ConfigurationError, LeaseLost, StoreError
from unlost.idempotency.sql import SqlStore


class Base(DeclarativeBase):
    """The business tables."""


class Payment(Base):
    """A business row."""

    __tablename__ = "payments"
    id: Mapped[int] = mapped_column("rowid", primary_key=True)
    amount: Mapped[int]


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


PLACES: dict[str, Callable[[Engine], Any]] = {
    "session": Session,
    "scoped session": lambda engine: scoped_session(sessionmaker(engine)),
    "connection": Engine.connect,
}


def pay_at(place: Any, amount: int) -> None:
    """Write a business row at a place of the caller's."""
    place.execute(text("INSERT INTO payments VALUES (:amount)"), {"amount": amount})


@pytest.fixture(params=PLACES)
def mine(request: pytest.FixtureRequest, store: SqlStore) -> Iterator[Any]:
    """A session or connection of the caller's, on the store's engine."""
    place = PLACES[request.param](store.engine)
    yield place
    place.close()


def test_a_callers_own_transaction_commits_with_done(store: SqlStore, mine: Any) -> None:
    """What it wrote before and in the block is there with the done record, and it can go on."""
    row = granted(store)
    pay_at(mine, 1)

    with store.unit_of_work(MESSAGE, row, str, None, mine) as work:
        pay_at(mine, 2)
        pay(work, 3)

    pay_at(mine, 4)
    mine.rollback()
    assert payments(store) == [1, 2, 3]
    assert read(store).state is State.DONE


@pytest.mark.parametrize("end", ["raise", "commit", "rollback"])
def test_a_callers_own_transaction_is_rolled_back(store: SqlStore, mine: Any, end: str) -> None:
    """By an exception of the body, and by a commit or rollback of its own inside the block."""
    row = granted(store)

    def body() -> None:
        with store.unit_of_work(MESSAGE, row, str, None, mine):
            pay_at(mine, 1)
            if end == "raise":
                raise StoreError("begin_nested")
            getattr(mine, end)()

    with pytest.raises(StoreError, match="begin_nested"):
        body()
    mine.rollback()
    assert payments(store) == []
    assert read(store) == row


def test_a_callers_own_transaction_is_fenced(store: SqlStore, mine: Any, clock: BootClock) -> None:
    """A holder that was taken over commits nothing, wherever it writes."""
    stale = granted(store)
    clock.seconds += 15
    current = granted(store)

    with pytest.raises(LeaseLost), store.unit_of_work(MESSAGE, stale, str, None, mine):
        pay_at(mine, 1)
    assert payments(store) == []
    assert read(store) == current


@pytest.mark.parametrize("place", PLACES)
def test_a_callers_own_engine_is_used_where_it_does_no_harm(server_url: str, place: str) -> None:
    """A session of another engine on the same database server commits with the done record."""
    store, engine = SqlStore(server_url), create_engine(server_url)
    store.create_schema()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE payments (amount INTEGER)"))
    mine = PLACES[place](engine)
    with store.unit_of_work(MESSAGE, granted(store), str, None, mine):
        pay_at(mine, 1)
    mine.close()
    assert (payments(store), read(store).state) == ([1], State.DONE)
    engine.dispose()
    store.close()


@pytest.mark.parametrize("path", ["other.sqlite", "ledger.sqlite"])
def test_an_engine_whose_rows_would_not_be_safe_is_refused(
    store: SqlStore, tmp_path: Path, path: str
) -> None:
    """Rows in another file would not commit with the done record, another engine breaks SQLite's locks."""
    elsewhere = create_engine(f"sqlite:///{tmp_path / path}")
    with Session(elsewhere) as session:
        refused = store.unit_of_work(MESSAGE, granted(store), str, None, session)
        with pytest.raises(ConfigurationError, match="the store's own engine"):
            refused.__enter__()
    elsewhere.dispose()
