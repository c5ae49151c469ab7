"""A unit of work in Django's transaction: rows of the ORM, the done record and the outbox commit together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from django.core.management import call_command
from django.db import DatabaseError, IntegrityError, OperationalError, connections, transaction

import unlost
from tests.support import django_project
from tests.support.apps import WORK, close, shop
from tests.support.ledgers import MESSAGE, granted, read
from tests.support.stores import time_machine
from unlost.core.settlement import State
from unlost.database.foreign import ForeignDatabase, Transaction, Visit
from unlost.errors import ConfigurationError, LeaseLost, StoreError, StoreUnavailable
from unlost.idempotency.sql import SqlStore

django_project.set_up()

from tests.support.django_shop.models import Order  # noqa: E402 - models need settings
from unlost.django import outbox  # noqa: E402
from unlost.django.models import OutboxMessage  # noqa: E402
from unlost.django.task import DjangoTask  # noqa: E402
from unlost.django.transaction import DjangoTransaction  # noqa: E402
from unlost.django.unit import DjangoDatabase, close_sqlite  # noqa: E402

Opened = Callable[[str], Any]


@pytest.fixture
def opened(store_servers: Any) -> Iterator[Opened]:
    """Return a function that opens a store in a database."""
    stores: list[SqlStore] = []

    def open_store(url: str) -> SqlStore:
        stores.append(SqlStore(url))
        stores[-1].create_schema()
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def store(database_url: str, opened: Opened) -> Iterator[SqlStore]:
    """Return the ledger of a database that is Django's default too, with the shop's table and the outbox."""
    with django_project.on_databases(default=database_url):
        call_command("migrate", verbosity=0)
        with connections["default"].schema_editor() as editor:
            editor.create_model(Order)
        yield opened(database_url)


def cut_off(store: SqlStore, connection: Any) -> None:
    """Have the server end Django's connection; SQLite has no server."""
    end = {"postgresql": "SELECT pg_terminate_backend({})", "mysql": "KILL {}"}.get(connection.vendor)
    if end is not None:
        raw = connection.connection
        number = raw.info.backend_pid if connection.vendor == "postgresql" else raw.thread_id()
        with store.engine.connect() as other:
            other.exec_driver_sql(end.format(number))


def orders() -> list[int]:
    """Return the business rows."""
    return sorted(Order.objects.values_list("number", flat=True))


class Pay(DjangoTask):
    """A task that is only published."""

    name = "shop.pay_django_unit"
    queue = WORK

    def run(self, order_id: int) -> None:
        """Never run."""


@pytest.fixture
def pay(tmp_path: Path) -> Iterator[Any]:
    """Register the task on an app whose broker is never reached."""
    app = Celery("shop", broker="amqp://guest:guest@127.0.0.1:1//", set_as_current=False)
    unlost.install(app, topology=shop(), store=f"sqlite:///{tmp_path / 'other.sqlite'}")
    yield app.register_task(Pay())
    close(app)


def test_rows_done_result_and_messages_commit_together(store: SqlStore, pay: Any) -> None:
    """Inside the block nobody sees any of them, after it all are there."""
    row = granted(store)
    with store.unit_of_work(MESSAGE, row, lambda result: f"<{result}>", None, DjangoDatabase()) as work:
        Order.objects.create(number=1)
        outbox.publish(pay, order_id=1)
        work.result = "paid"
        assert read(store) == row
    assert orders() == [1]
    assert (read(store).state, read(store).result) == (State.DONE, "<paid>")
    assert OutboxMessage.objects.count() == 1


def test_an_exception_takes_all_of_it_back(store: SqlStore, pay: Any) -> None:
    """What the body raises comes out as it is; no row, no message, and the lease stands."""
    row = granted(store)

    def body() -> None:
        with store.unit_of_work(MESSAGE, row, str, None, DjangoDatabase()):
            Order.objects.create(number=1)
            outbox.publish(pay, order_id=1)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        body()
    assert (orders(), OutboxMessage.objects.count(), read(store)) == ([], 0, row)


class AutocommitDatabase(DjangoDatabase):
    """Django's database with the guarantee switched off: each statement commits by itself."""

    @contextmanager
    def transaction(self, visit: Visit) -> Iterator[Transaction]:
        """Open no transaction."""
        connection = connections["default"]
        connection.ensure_connection()
        with visit(connection.connection):
            yield DjangoTransaction("default", needed=False)

    def conclude(self) -> None:
        """See no transaction given up."""


@pytest.mark.parametrize(
    ("database", "left"), [(DjangoDatabase, []), (AutocommitDatabase, [1])], ids=["atomic", "control"]
)
def test_a_stale_holder_rolls_back(store: SqlStore, database: type[ForeignDatabase], left: list[int]) -> None:
    """Rows of a holder that was taken over are undone; without the one transaction they would stay."""
    stale = granted(store)
    time_machine(store)(20)
    current = granted(store)
    with pytest.raises(LeaseLost), store.unit_of_work(MESSAGE, stale, str, None, database()):
        Order.objects.create(number=1)
    assert orders() == left
    assert read(store) == current


@pytest.mark.parametrize("happened", [True, False], ids=["committed", "lost"])
def test_a_commit_that_is_not_answered_is_looked_up(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch, happened: bool
) -> None:
    """The ledger's row says what became of it: done, or to be tried again."""
    row, connection = granted(store), connections["default"]
    commit = connection._commit

    def cut() -> None:
        if happened:
            commit()
        monkeypatch.undo()
        cut_off(store, connection)
        raise OperationalError("server closed the connection unexpectedly")

    def body() -> None:
        with store.unit_of_work(MESSAGE, row, str, None, DjangoDatabase()):
            Order.objects.create(number=1)
            monkeypatch.setattr(connection, "_commit", cut)

    if happened:
        body()
        assert read(store).state is State.DONE
    else:
        with pytest.raises(StoreUnavailable):
            body()
        assert read(store) == row
    connection.close()
    assert orders() == ([1] if happened else [])


def test_a_connection_that_breaks_is_the_stores_failure(server_url: str, opened: Opened) -> None:
    """It is raised as what is always retried, and the next unit of work has a connection that works."""
    with django_project.on_databases(default=server_url):
        store = opened(server_url)
        row, connection = granted(store), connections["default"]

        def body(fails: bool) -> None:
            with store.unit_of_work(MESSAGE, row, str, None, DjangoDatabase()):
                if fails:
                    cut_off(store, connection)
                with connection.cursor() as cursor:
                    cursor.execute("SELECT 1")

        with pytest.raises(StoreUnavailable):
            body(fails=True)
        assert read(store) == row
        body(fails=False)
        assert read(store).state is State.DONE


def test_a_mistake_in_the_body_stays_its_own(store: SqlStore) -> None:
    """A violated constraint and a statement that is wrong are for the task's retry policy."""
    row = granted(store)

    def twice() -> None:
        with store.unit_of_work(MESSAGE, row, str, None, DjangoDatabase()):
            Order.objects.create(number=1)
            Order.objects.create(number=1)

    with pytest.raises(IntegrityError):
        twice()
    with (
        pytest.raises(DatabaseError, match="nowhere"),
        store.unit_of_work(MESSAGE, row, str, None, DjangoDatabase()),
        connections["default"].cursor() as cursor,
    ):
        cursor.execute("SELECT * FROM nowhere")
    assert (orders(), read(store)) == ([], row)


def test_an_open_transaction_is_refused(store: SqlStore) -> None:
    """Inside ``atomic()`` the block would be a savepoint, and done before it has committed."""
    row = granted(store)
    with transaction.atomic():
        refused = store.unit_of_work(MESSAGE, row, str, None, DjangoDatabase())
        with pytest.raises(ConfigurationError, match=r"open unit_of_work\(\) outside"):
            refused.__enter__()
    assert read(store) == row


def test_a_rollback_inside_never_completes(store: SqlStore) -> None:
    """``set_rollback`` would end the block without its rows and without an error; it is one."""
    row = granted(store)

    def body() -> None:
        with store.unit_of_work(MESSAGE, row, str, None, DjangoDatabase()):
            Order.objects.create(number=1)
            transaction.set_rollback(True)

    with pytest.raises(StoreError, match="rolled back inside"):
        body()
    assert (orders(), read(store)) == ([], row)


def test_a_part_may_be_rolled_back(store: SqlStore) -> None:
    """``atomic()`` inside is a savepoint, which takes only its own rows with it."""
    with store.unit_of_work(MESSAGE, granted(store), str, None, DjangoDatabase()):
        Order.objects.create(number=1)
        with pytest.raises(IntegrityError), transaction.atomic():
            Order.objects.bulk_create([Order(number=2), Order(number=1)])
    assert (orders(), read(store).state) == ([1], State.DONE)


def test_a_hook_that_raises_undoes_nothing(store: SqlStore) -> None:
    """What an ``on_commit`` hook raises comes out, and the database knows that it has committed."""
    database = DjangoDatabase()

    def hook() -> None:
        raise OperationalError("in the hook")

    def body() -> None:
        with store.unit_of_work(MESSAGE, granted(store), str, None, database):
            Order.objects.create(number=1)
            transaction.on_commit(hook)

    with pytest.raises(OperationalError, match="in the hook"):
        body()
    assert database.committed
    assert (orders(), read(store).state) == ([1], State.DONE)


def test_another_database_is_refused(store: SqlStore, opened: Opened, tmp_path: Path) -> None:
    """Rows in Django's database would not commit with a done record in another; the way out is named."""
    elsewhere = opened(f"sqlite:///{tmp_path / 'elsewhere.sqlite'}")
    refused = elsewhere.unit_of_work(MESSAGE, granted(elsewhere), str, None, DjangoDatabase())
    with pytest.raises(ConfigurationError, match=r"one database.*store_url"):
        refused.__enter__()


def test_there_is_no_session(store: SqlStore) -> None:
    """``work.session`` would be another transaction; statements of SQLAlchemy run on ``work.connection``."""
    with store.unit_of_work(MESSAGE, granted(store), str, None, DjangoDatabase()) as work:
        with pytest.raises(ConfigurationError, match=r"through work\.connection"):
            _ = work.session
        assert isinstance(work.connection, DjangoTransaction)


def test_a_process_that_stands_still_at_the_end_is_ended(
    server_url: str, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the ledger's write the server ends an idle transaction within a lease, and nowhere else."""
    shown = {
        "postgresql": "SHOW idle_in_transaction_session_timeout",
        "mysql": "SELECT @@idle_transaction_timeout",
    }
    with django_project.on_databases(default=server_url):
        store, connection = opened(server_url), connections["default"]

        def limit() -> str:
            with connection.cursor() as cursor:
                cursor.execute(shown[connection.vendor])
                return str(cursor.fetchone()[0])

        before, seen, complete = limit(), [], store._complete

        def look(*given: Any) -> Any:
            seen.append(limit())
            return complete(*given)

        monkeypatch.setattr(store, "_complete", look)
        with store.unit_of_work(MESSAGE, granted(store), str, None, DjangoDatabase()):
            assert limit() == before
        assert seen in (["15s"], ["15"])
        assert limit() == before


def test_writers_of_one_sqlite_file_wait_for_each_other(tmp_path: Path, opened: Opened) -> None:
    """A unit of work is a writer from its start: what others commit cannot make its first write fail."""
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    with django_project.on_databases(default=url):
        store, connection = opened(url), connections["default"]
        connection.cursor().execute("PRAGMA busy_timeout=0")
        with store.unit_of_work(MESSAGE, granted(store), str, None, DjangoDatabase()):
            blocked = SqlStore(url)
            with blocked.engine.connect() as other:
                other.connection.execute("PRAGMA busy_timeout=0")
                with pytest.raises(Exception, match="locked"):
                    other.begin()
            blocked.close()
        with store.database.transaction():
            refused = store.unit_of_work(MESSAGE, read(store), str, None, DjangoDatabase())
            with pytest.raises(StoreUnavailable, match="locked"):
                refused.__enter__()


def test_a_fork_finds_no_sqlite_connection(tmp_path: Path) -> None:
    """Django's connections to a file are closed before a child is forked; the next statement opens one."""
    with django_project.on_databases(default=f"sqlite:///{tmp_path / 'store.sqlite'}"):
        connections["default"].ensure_connection()
        child = os.fork()
        if child == 0:
            os._exit(0 if connections["default"].connection is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with transaction.atomic():
            close_sqlite()
            assert connections["default"].connection is not None
