"""What every SQL part is promised of its database, on each kind: time, upserts, migrations, locks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, Table, inspect, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from tests.support.interrupts import Interrupted, interrupted_after
from tests.support.processes import PATIENCE
from unlost.database import dialect
from unlost.database.database import Database
from unlost.database.dialect import Seconds, exact, long_text
from unlost.database.errors import is_contention, is_passing
from unlost.database.migrations import Migration, migrate
from unlost.database.schemes import is_supported
from unlost.errors import ConfigurationError, StoreUnavailable

metadata = MetaData()
things = Table(
    "things",
    metadata,
    Column("name", exact(100), primary_key=True),
    Column("number", Integer),
    Column("moment", Seconds),
    Column("text", long_text()),
)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty database with one table."""
    yield from with_table(database_url)


@pytest.fixture
def server(server_url: str) -> Iterator[Database]:
    """The same, of the kinds that have a server."""
    yield from with_table(server_url)


def with_table(url: str) -> Iterator[Database]:
    """Open a database and make the table."""
    opened = Database(url)
    with opened.transaction() as connection:
        metadata.create_all(connection)
    yield opened
    opened.dispose()


def names(database: Database) -> list[str]:
    """Return the keys of all rows."""
    with database.transaction() as connection:
        return sorted(connection.scalars(select(things.c.name)))


def add(connection: Connection, name: str, number: int = 1) -> None:
    """Write a row."""
    connection.execute(things.insert().values(name=name, number=number))


def add_and_raise(database: Database, name: str) -> None:
    """Write a row in a transaction that does not end well."""
    with database.transaction() as connection:
        add(connection, name)
        raise ValueError("no")


def test_an_answer_that_nobody_waited_for_is_not_the_next_statements(server: Database) -> None:
    """A statement that a signal interrupts costs its connection; the next has its own answer."""
    sleep = "SELECT pg_sleep(30)" if server.dialect.name == "postgresql" else "SELECT sleep(30)"
    with (
        pytest.raises((Interrupted, StoreUnavailable)),
        interrupted_after(0.2),
        server.transaction() as connection,
    ):
        connection.execute(text(sleep))
    for number in (1, 2):
        with server.transaction() as connection:
            assert connection.scalar(text(f"SELECT {number}")) == number


def test_the_clock_is_read_when_asked(database: Database) -> None:
    """Within one transaction the database's time goes on, in fractions of a second."""
    with database.transaction() as connection:
        times = [connection.execute(select(database.dialect.clock())).scalar_one() for _ in range(20)]
        wall = connection.execute(select(database.dialect.wall_ms())).scalar_one()

    assert all(isinstance(moment, float) for moment in times)
    assert times == sorted(times)
    assert 0 < times[-1] - times[0] < PATIENCE.total_seconds()
    assert isinstance(wall, int)
    assert wall > 1_700_000_000_000


def test_a_moment_keeps_its_microseconds(database: Database) -> None:
    """Leases are compared in fractions of a second: a column of moments has double precision."""
    with database.transaction() as connection:
        connection.execute(things.insert().values(name="a", moment=1_764_000_000.123456))
        assert connection.scalar(select(things.c.moment)) == 1_764_000_000.123456


def test_keys_are_equal_only_to_themselves(database: Database) -> None:
    """Case, accents and trailing spaces tell keys apart: to fold them is to lose a task."""
    with database.transaction() as connection:
        for name in ("a", "A", "ä", "a ", " a", "ß", "ss"):
            add(connection, name)

    assert len(names(database)) == 7


def test_long_text_is_kept_whole(database: Database) -> None:
    """A megabyte with characters outside the basic plane comes back as it was."""
    long = "\N{PILE OF POO}ü" * 200_000
    with database.transaction() as connection:
        connection.execute(things.insert().values(name="a", text=long))
        assert connection.scalar(select(things.c.text)) == long


def test_an_upsert_inserts_and_updates(database: Database) -> None:
    """The second write of a key changes the named columns, or all of them."""
    upsert = database.dialect.upsert
    with database.transaction() as connection:
        connection.execute(upsert(things, {"name": "a", "number": 1, "text": "one"}))
        connection.execute(upsert(things, {"name": "a", "number": 2, "text": "two"}, change=["number"]))
        assert connection.execute(select(things.c.number, things.c.text)).one() == (2, "one")
        connection.execute(upsert(things, {"name": "a", "number": 3, "text": "three"}))
        assert connection.execute(select(things.c.number, things.c.text)).one() == (3, "three")


def test_an_insert_of_what_is_there_changes_nothing(database: Database) -> None:
    """``insert_missing`` writes only the first."""
    with database.transaction() as connection:
        for number in (1, 2):
            connection.execute(database.dialect.insert_missing(things, {"name": "a", "number": number}))
        assert connection.scalars(select(things.c.number)).all() == [1]


def test_an_exception_rolls_back(database: Database) -> None:
    """A block that raises commits nothing."""
    with pytest.raises(ValueError, match="no"):
        add_and_raise(database, "a")

    assert names(database) == []


def test_autocommit_commits_each_statement(database: Database) -> None:
    """What one statement wrote stays; the next transaction is an ordinary one again."""
    with database.autocommit() as connection:
        add(connection, "a")
    with pytest.raises(ValueError, match="no"):
        add_and_raise(database, "b")

    assert names(database) == ["a"]


def test_a_violated_constraint_passes(database: Database) -> None:
    """What the rows violate is not the store's failure."""
    with database.transaction() as connection:
        add(connection, "a")
    with pytest.raises(IntegrityError), database.transaction() as connection:
        add(connection, "a")


def test_what_is_wrong_is_unavailable(database: Database) -> None:
    """Any other failure of the database is ours by name."""
    with pytest.raises(StoreUnavailable, match="missing"), database.transaction() as connection:
        connection.execute(text("SELECT * FROM missing"))


def test_a_locked_row_is_contention(server: Database) -> None:
    """A lock that is not had at once, with NOWAIT, is told from other failures."""
    with server.transaction() as connection:
        add(connection, "a")
    look = select(things).with_for_update(nowait=True)
    with server.transaction() as first:
        first.execute(look)
        with server.engine.connect() as second:
            with pytest.raises(DBAPIError) as refused:
                second.execute(look)
            with pytest.raises(DBAPIError) as wrong:
                second.execute(text("SELECT * FROM missing"))

    assert is_contention(refused.value)
    assert is_passing(refused.value)
    assert not is_passing(wrong.value)


def test_a_wait_for_a_lock_ends(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for another writer longer than the patience gets an error that says so."""
    monkeypatch.setattr(dialect, "LOCK_PATIENCE", timedelta(seconds=1))
    database = Database(database_url)
    with database.transaction() as connection:
        metadata.create_all(connection)
        add(connection, "a")
    with database.transaction() as connection:
        connection.execute(things.update().values(number=2))
        with pytest.raises(StoreUnavailable, match=r"(?i)lock"), database.transaction() as other:
            other.execute(things.update().values(number=3))
    database.dispose()


def test_who_stands_still_loses_the_transaction(server: Database) -> None:
    """A client that sits in a transaction longer than allowed is cut off, and its locks with it."""
    with server.transaction() as connection:
        add(connection, "a")
    with server.engine.connect() as frozen:
        transaction = frozen.begin()
        server.dialect.limit_idle(frozen, timedelta(seconds=1))
        frozen.execute(things.update().values(number=2))
        with server.transaction() as connection:
            # Waits for the lock, and has it when the frozen one is cut off.
            connection.execute(things.update().values(number=3))
        with pytest.raises(DBAPIError) as cut_off:
            frozen.execute(select(things))
        transaction.close()

    assert is_passing(cut_off.value)


# --- migrations


def create(connection: Connection) -> None:
    """Make the table."""
    metadata.create_all(connection)


def fill(connection: Connection) -> None:
    """Add a row; twice would violate the key."""
    add(connection, "migrated")


TWO = (Migration(1, create), Migration(2, fill))


def test_migrations_are_applied_once(database_url: str) -> None:
    """What is missing is applied in order; what was applied is not again."""
    database = Database(database_url)

    assert migrate(database, "part", TWO[:1]) == [1]
    assert migrate(database, "part", TWO) == [2]
    assert migrate(database, "part", TWO) == []
    assert names(database) == ["migrated"]
    database.dispose()


def test_parts_have_versions_of_their_own(database_url: str) -> None:
    """The same number of another part is another migration."""
    database = Database(database_url)

    assert migrate(database, "one", TWO[:1]) == [1]
    assert migrate(database, "two", [Migration(1, fill)]) == [1]
    database.dispose()


def test_many_may_migrate_at_once(database_url: str) -> None:
    """Of several that start together one applies each migration."""
    databases = [Database(database_url) for _ in range(6)]
    start = threading.Barrier(len(databases))
    applied: list[int] = []

    def begin(database: Database) -> None:
        start.wait(PATIENCE.total_seconds())
        applied.extend(migrate(database, "part", TWO))

    threads = [threading.Thread(target=begin, args=(database,)) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(applied) == [1, 2]
    for database in databases:
        database.dispose()


def test_a_migration_that_fails_is_not_noted(database_url: str) -> None:
    """It is applied by the next start; the lock is not left behind."""
    database = Database(database_url)

    def fail(_connection: Connection) -> None:
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        migrate(database, "part", [Migration(1, fail)])

    assert migrate(database, "part", TWO) == [1, 2]
    with database.transaction() as connection:
        assert inspect(connection).has_table("things")
    database.dispose()


def test_gaps_are_refused(database_url: str) -> None:
    """Versions that do not count up from one are a mistake of the release."""
    database = Database(database_url)

    with pytest.raises(ConfigurationError, match="part"):
        migrate(database, "part", TWO[1:])
    database.dispose()


# --- URLs


def test_schemes_are_told_apart() -> None:
    """Which URLs name a database can be asked without opening one."""
    assert is_supported("postgresql://h/d")
    assert is_supported("mariadb://h/d")
    assert not is_supported("redis://h/1")


@pytest.mark.parametrize("url", ["postgresql://shop:s3cret@h/d", "mariadb://shop:s3cret@h/d"])
def test_a_password_is_not_shown(url: str) -> None:
    """The driver is filled in, and the password stays out of the repr."""
    database = Database(url)

    assert "s3cret" not in repr(database)
    assert database.url.password == "s3cret"
    assert "+" in database.url.drivername


@pytest.mark.parametrize(
    "url", ["postgresql://shop:s3cret@127.0.0.1:1/d", "mariadb://shop:s3cret@127.0.0.1:1/d"]
)
def test_a_server_that_is_not_there_is_unavailable(url: str) -> None:
    """A refused connection is the store's failure, and its error holds no password."""
    with pytest.raises(StoreUnavailable) as refused, Database(url).transaction():
        pass

    assert "s3cret" not in str(refused.value)
