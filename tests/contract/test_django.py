"""The outbox in Django's transactions, on each kind of database."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, group
from django.core.management import call_command
from django.db import connections, transaction
from django.test.utils import override_settings
from sqlalchemy import inspect

import unlost
from tests.support import django_project
from tests.support.apps import OTHER, WORK, close, shop
from tests.support.outboxes import Broker, columns, opened_outbox, relay
from unlost import outbox as plain
from unlost.database.database import Database
from unlost.errors import ConfigurationError
from unlost.outbox.schema import outbox as table
from unlost.outbox.store import OutboxStore
from unlost.outbox.wakeup import wakeup_for

django_project.set_up()

from tests.support.django_shop.models import Order  # noqa: E402 - models need settings
from unlost.django import outbox  # noqa: E402
from unlost.django.database import store_url  # noqa: E402
from unlost.django.models import OutboxMessage  # noqa: E402
from unlost.django.task import DjangoTask  # noqa: E402

NOWHERE = "amqp://guest:guest@127.0.0.1:1//"
NEVER = threading.Event()


class Pay(DjangoTask):
    """A task that is only published."""

    name = "shop.pay_django"
    queue = WORK

    def run(self, order_id: int) -> None:
        """Never run."""


@pytest.fixture
def pay(tmp_path: Path) -> Iterator[Any]:
    """Register the task on an app whose broker is never reached."""
    app = Celery("shop", broker=NOWHERE, set_as_current=False)
    unlost.install(app, topology=shop(), store=f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    yield app.register_task(Pay())
    close(app)


@contextmanager
def migrated(**urls: str) -> Iterator[None]:
    """Use databases that have the outbox's tables and the shop's."""
    with django_project.on_databases(**urls):
        for alias in urls:
            call_command("migrate", database=alias, verbosity=0)
            with connections[alias].schema_editor() as editor:
                editor.create_model(Order)
        yield


@pytest.fixture
def url(database_url: str) -> Iterator[str]:
    """Use a database that is ready, as Django's default."""
    with migrated(default=database_url):
        yield database_url


def sent(url: str) -> list[tuple[str, list[Any]]]:
    """Relay all that is in a database's outbox; return the tasks and their arguments."""
    broker = Broker()
    with opened_outbox(url) as store:
        relay(store, broker).drain(NEVER)
    return [(each.headers["task"], json.loads(each.body)[:2]) for each in broker.published]


def test_a_task_is_published_when_its_transaction_commits(url: str, pay: Any) -> None:
    """Inside the block nothing can be relayed; after it the order is there and its task is published."""
    with transaction.atomic():
        Order.objects.create(number=1)
        result = outbox.publish(pay, order_id=1)
        outbox.apply_async(pay, args=(2,), priority=7, queue=OTHER)
        assert OutboxMessage.objects.first().message_id == f"{result.id}.0.1"
    assert Order.objects.count() == 1
    assert sent(url) == [("shop.pay_django", [[], {"order_id": 1}]), ("shop.pay_django", [[2], {}])]
    assert {str(each) for each in OutboxMessage.objects.filter(message_id=f"{result.id}.0.1")} == {
        f"shop.pay_django[{result.id}.0.1] delivered"
    }


@pytest.mark.parametrize("inner", [False, True], ids=["transaction", "savepoint"])
def test_what_is_rolled_back_is_not_published(url: str, pay: Any, inner: bool) -> None:
    """Neither a transaction nor a savepoint that is rolled back leaves a message."""

    class _Refused(Exception):
        """Ends the block."""

    def place(number: int) -> None:
        with transaction.atomic():
            Order.objects.create(number=number)
            pay.delay_on_commit(number)
            raise _Refused

    if inner:
        with transaction.atomic():
            pay.delay_on_commit(order_id=1)
            with pytest.raises(_Refused):
                place(2)
    else:
        with pytest.raises(_Refused):
            place(2)
    assert Order.objects.count() == 0
    assert sent(url) == ([("shop.pay_django", [[], {"order_id": 1}])] if inner else [])


def test_celerys_names_write_into_the_outbox(url: str, pay: Any) -> None:
    """``delay_on_commit`` and ``apply_async_on_commit`` take what Celery's take, and return a result."""
    with transaction.atomic():
        first = pay.delay_on_commit(1)
        second = pay.apply_async_on_commit(kwargs={"order_id": 2}, countdown=60, ordering_key="k")
    assert [each.message_id for each in OutboxMessage.objects.all()] == [
        f"{each.id}.0.1" for each in (first, second)
    ]
    assert [each.ordering_key for each in OutboxMessage.objects.all()] == [None, "k"]


def test_a_canvas_commits_as_a_whole(url: str, pay: Any) -> None:
    """Every member of a group is in the transaction."""
    with transaction.atomic():
        outbox.publish(group(pay.si(1), pay.si(2)))
    assert [arguments for _, arguments in sent(url)] == [[[1], {}], [[2], {}]]


def test_the_row_is_the_one_that_sqlalchemy_writes(url: str, pay: Any) -> None:
    """Whoever wrote it, a message's row is the same in every column but ids and times."""
    options: dict[str, Any] = {"task_id": "t", "headers": {"x-unlost-correlation-id": "c"}}
    with transaction.atomic():
        outbox.apply_async(pay, args=(1,), ordering_key="k", **options)
    with opened_outbox(url) as store:
        with store.engine.begin() as connection:
            plain.apply_async(connection, pay, args=(1,), ordering_key="k", **options)
        names = [each.name for each in table.columns if each.name not in ("id", "created_ms", "headers")]
        ours, theirs = columns(store, *names)
        assert ours == theirs
        (django_at,), (plain_at,) = columns(store, "created_ms")
        assert abs(django_at - plain_at) < 60_000


def test_without_a_transaction_it_is_refused(url: str, pay: Any) -> None:
    """In autocommit mode the rows are committed already: that a task may be lost then is not hidden."""
    with pytest.raises(ConfigurationError, match=r"no transaction is open on database 'default'.*atomic"):
        outbox.publish(pay, order_id=1)
    assert OutboxMessage.objects.count() == 0


def test_a_database_without_the_tables_is_named(database_url: str, pay: Any) -> None:
    """The error says which database it is and how it gets its tables."""
    with django_project.on_databases(default=database_url):

        def publish() -> None:
            with transaction.atomic():
                outbox.publish(pay, order_id=1)

        with pytest.raises(ConfigurationError, match=r"'default' has no outbox.*migrate unlost"):
            publish()


def shape(url: str) -> dict[str, Any]:
    """Return columns and indexes of the outbox's tables."""
    database = Database(url)
    found = inspect(database.engine)
    made = {
        name: (
            [(each["name"], str(each["type"]), each["nullable"]) for each in found.get_columns(name)],
            sorted((each["name"], each["column_names"]) for each in found.get_indexes(name)),
            found.get_pk_constraint(name)["constrained_columns"],
        )
        for name in ("unlost_outbox", "unlost_outbox_keys", "unlost_schema_versions")
    }
    database.dispose()
    return made


@pytest.mark.parametrize("first", ["django", "unlost"])
def test_there_is_one_schema_whoever_makes_it(database_url: str, first: str) -> None:
    """``manage.py migrate`` and ``unlost outbox init`` make the same tables, and each finds the other's."""
    store = OutboxStore(Database(database_url))
    with django_project.on_databases(default=database_url):
        if first == "unlost":
            assert store.create_schema() == [1]
            by_unlost = shape(database_url)
            call_command("migrate", "unlost", verbosity=0)
            assert shape(database_url) == by_unlost
        else:
            call_command("migrate", "unlost", verbosity=0)
            by_django = shape(database_url)
            assert store.create_schema() == []
            with store.engine.begin() as connection:
                for name in by_django:
                    connection.exec_driver_sql(f"DROP TABLE {name}")
            store.create_schema()
            assert shape(database_url) == by_django
    store.engine.dispose()


def test_the_migrations_say_what_the_models_say(url: str) -> None:
    """``makemigrations`` finds nothing to do."""
    call_command("makemigrations", "unlost", check=True, dry_run=True, verbosity=0)


def test_the_tables_stay_when_django_unapplies_its_migration(url: str) -> None:
    """There is no way back that could drop committed messages."""
    from django.db.migrations.exceptions import IrreversibleError

    with pytest.raises(IrreversibleError):
        call_command("migrate", "unlost", "zero", verbosity=0)
    assert OutboxMessage.objects.count() == 0


class ToOrders:
    """A database router that sends what is unlost's to a database of its own."""

    def db_for_write(self, model: Any, **_: Any) -> str | None:
        """Name the database."""
        return "orders" if model._meta.app_label == "unlost" else None

    def allow_migrate(self, db: str, app_label: str, **_: Any) -> bool | None:
        """Make the tables nowhere else."""
        return db == "orders" if app_label == "unlost" else None


def test_routers_say_where_messages_go(database_url: str, tmp_path: Path, pay: Any) -> None:
    """The routers' database gets tables and messages; its transaction counts, and ``using`` overrides."""
    default = f"sqlite:///{tmp_path / 'default.sqlite'}"
    with (
        override_settings(DATABASE_ROUTERS=["tests.contract.test_django.ToOrders"]),
        migrated(default=default, orders=database_url),
    ):
        with transaction.atomic(using="orders"):
            outbox.publish(pay, order_id=1)
        with transaction.atomic(), pytest.raises(ConfigurationError, match="on database 'orders'"):
            outbox.publish(pay, order_id=2)
        assert "unlost_outbox" not in connections["default"].introspection.table_names()
        with transaction.atomic(), pytest.raises(ConfigurationError, match="'default' has no outbox"):
            outbox.apply_async(pay, args=(3,), using="default")
    assert [arguments for _, arguments in sent(database_url)] == [[[], {"order_id": 1}]]


def test_transactions_of_one_ordering_key_cannot_cross(server_url: str, pay: Any) -> None:
    """The second to write under a key waits for the end of the first, and comes behind it."""
    wrote, entered, second = threading.Event(), threading.Event(), []

    def other() -> None:
        with transaction.atomic():
            entered.set()
            outbox.apply_async(pay, args=(2,), ordering_key="k")
            wrote.set()
        connections["default"].close()

    with migrated(default=server_url), ThreadPoolExecutor(1) as thread:
        with transaction.atomic():
            outbox.apply_async(pay, args=(1,), ordering_key="k")
            second.append(thread.submit(other))
            assert entered.wait(10)
            assert not wrote.wait(0.5)
        second[0].result(30)
    assert [arguments for _, arguments in sent(server_url)] == [[[1], {}], [[2], {}]]


def test_a_commit_of_djangos_wakes_the_relay(store_servers: Any, pay: Any) -> None:
    """On PostgreSQL a relay that listens hears of Django's commit, and of nothing before it."""
    with store_servers("postgresql").fresh() as url, migrated(default=url):
        database = Database(url)
        listening = wakeup_for(database.engine)
        listening.wait(10, NEVER)  # the first look, at once
        heard = threading.Event()

        def listen() -> None:
            listening.wait(30, NEVER)
            heard.set()

        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(listen)
            with transaction.atomic():
                outbox.publish(pay, order_id=1)
                assert not heard.wait(0.5)
            waiting.result(20)
        listening.close()
        database.dispose()


def test_a_store_url_leads_to_the_same_database(url: str) -> None:
    """What ``store_url`` returns opens Django's database with unlost's own engine."""
    with opened_outbox(store_url()) as store:
        assert store.missing_versions() == []
        assert store.status().pending == 0


def test_the_command_runs_on_djangos_database(url: str, pay: Any) -> None:
    """``manage.py unlost_outbox`` is ``unlost outbox`` with the database of ``DATABASES``."""
    with transaction.atomic():
        outbox.publish(pay, order_id=1)
    import contextlib

    out = StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        call_command("unlost_outbox", "status", "--json")
    assert ended.value.code == 0
    assert json.loads(out.getvalue())["ready"] == 1
