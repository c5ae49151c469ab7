"""The outbox and its relay keep their promises on every database."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import count

import pytest
from sqlalchemy import Connection, select, text
from sqlalchemy.orm import Session

from tests.support.outboxes import (
    LEASE,
    Broker,
    columns,
    commit,
    end_leases,
    ids,
    message,
    opened_outbox,
    relay,
    running,
)
from unlost.core import headers as h
from unlost.core.clock import epoch_ms
from unlost.database.database import Database
from unlost.database.migrations import Migration, migrate
from unlost.errors import (
    BrokerUnavailable,
    ConfigurationError,
    ConfirmUnknown,
    InvalidMessage,
    Refused,
    Unroutable,
)
from unlost.outbox.relay import Step
from unlost.outbox.schema import MIGRATIONS, PART
from unlost.outbox.schema import outbox as table
from unlost.outbox.state import Again, Delivered, Park
from unlost.outbox.store import OutboxStore
from unlost.outbox.wakeup import wakeup_for
from unlost.outbox.writer import write
from unlost.testing.waiting import wait_until
from unlost.topology.naming import delay_routing_key

SOON = timedelta(seconds=30)
NEVER = threading.Event()


@pytest.fixture
def outbox(database_url: str) -> Iterator[OutboxStore]:
    """Return an empty outbox in each database."""
    with opened_outbox(database_url) as store:
        yield store


@pytest.fixture
def served(server_url: str) -> Iterator[OutboxStore]:
    """Return an empty outbox in each database that lets several write at once."""
    with opened_outbox(server_url) as store:
        yield store


def test_a_committed_message_is_claimed_as_it_was_written(outbox: OutboxStore) -> None:
    """Body, headers and properties come back equal, with the types that AMQP has and JSON has not."""
    written = message(
        1, at=datetime(2026, 1, 2, tzinfo=UTC), price=Decimal("1.50"), raw=b"\x00\xff", deep=[{"a": None}]
    )
    with outbox.engine.begin() as connection:
        write(connection, [written])
    (entry,) = outbox.claim("me", 10, LEASE)
    assert entry.message == written


def test_a_header_that_amqp_cannot_have_is_refused_by_the_writer(outbox: OutboxStore) -> None:
    """The caller hears of it in its own transaction, not an operator later."""
    with pytest.raises(TypeError, match="object"), outbox.engine.begin() as connection:
        write(connection, [message(1, what=object())])
    assert outbox.status().pending == 0


@pytest.mark.parametrize("kind", ["connection", "session", "savepoint"])
def test_what_is_rolled_back_is_never_published(outbox: OutboxStore, kind: str) -> None:
    """A message of a transaction, or of a savepoint, that is rolled back is not in the outbox."""
    if kind == "connection":
        with outbox.engine.connect() as connection:
            write(connection, [message(1)])
            connection.rollback()
    else:
        with Session(outbox.engine) as session, session.begin():
            inner = session.begin_nested() if kind == "savepoint" else session
            write(session, [message(1)])
            inner.rollback()
    assert outbox.claim("me", 10, LEASE) == []


def test_what_is_not_committed_yet_is_not_published(served: OutboxStore) -> None:
    """A relay cannot see a row before its transaction has committed."""
    with served.engine.begin() as connection:
        write(connection, [message(1)])
        assert served.claim("me", 10, LEASE) == []
    assert ids(served.claim("me", 10, LEASE)) == ["m1"]


@pytest.mark.parametrize("place", ["engine", None])
def test_what_is_no_transaction_is_refused(outbox: OutboxStore, place: str | None) -> None:
    """An engine has no transaction that a message could belong to."""
    with pytest.raises(ConfigurationError, match="Session or Connection"):
        write(outbox.engine if place else None, [message(1)])  # type: ignore[arg-type]


def test_a_database_without_the_table_says_what_to_do(outbox: OutboxStore) -> None:
    """The first publish into a database that was never prepared names the command that prepares it."""
    with outbox.engine.begin() as connection:
        connection.execute(text("DROP TABLE unlost_outbox"))
    with pytest.raises(ConfigurationError, match="unlost outbox init"), outbox.engine.begin() as connection:
        write(connection, [message(1)])


def test_a_claimed_row_is_nobody_elses_until_its_lease_ends(outbox: OutboxStore) -> None:
    """A second claim gets nothing; after the lease it gets the rows under a higher token."""
    commit(outbox, 1, 2)
    first = outbox.claim("one", 10, LEASE)
    assert outbox.claim("two", 10, LEASE) == []
    end_leases(outbox)
    second = outbox.claim("two", 10, LEASE)
    assert ids(second) == ["m1", "m2"]
    assert second[0].token == first[0].token + 1


@pytest.mark.parametrize("verdict", [Delivered(), Park("no"), Again(timedelta(0), "no", counted=True)])
def test_a_relay_that_was_taken_over_writes_nothing(outbox: OutboxStore, verdict: object) -> None:
    """Every verdict is a compare-and-set on the token: a stale one changes no row."""
    commit(outbox, 1)
    (stale,) = outbox.claim("one", 10, LEASE)
    end_leases(outbox)
    outbox.claim("two", 10, LEASE)
    before = columns(outbox, "state", "holder", "failures", "reason")
    assert outbox.settle([(stale, verdict)]) == 0  # type: ignore[list-item]
    outbox.release([stale])
    assert columns(outbox, "state", "holder", "failures", "reason") == before


def test_claims_that_run_at_once_share_the_rows(outbox: OutboxStore) -> None:
    """Eight claimers get every row exactly once."""
    commit(outbox, *range(400))
    taken: list[str] = []

    def claim() -> None:
        while entries := outbox.claim("one of many", 20, LEASE):
            taken.extend(ids(entries))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(taken) == sorted(f"m{number}" for number in range(400))


def test_rows_of_a_key_are_not_claimed_while_an_earlier_one_is_held(outbox: OutboxStore) -> None:
    """Another relay's lease on a key's first row keeps the later ones back, and nobody else's."""
    commit(outbox, 1, key="a")
    outbox.claim("one", 10, LEASE)
    commit(outbox, 2, key="a")
    commit(outbox, 3, key="b")
    commit(outbox, 4)
    assert ids(outbox.claim("two", 10, LEASE)) == ["m3", "m4"]


def test_a_long_key_that_waits_leaves_room_for_others(outbox: OutboxStore) -> None:
    """More waiting rows of one key than a batch holds keep no later row of another from being claimed."""
    commit(outbox, 1, key="a")
    outbox.claim("one", 10, LEASE)
    commit(outbox, *range(2, 10), key="a")
    commit(outbox, 10)
    assert ids(outbox.claim("two", 3, LEASE)) == ["m10"]


def test_a_claim_takes_nothing_behind_a_row_that_another_claim_is_locking(served: OutboxStore) -> None:
    """Two claims at the same moment: the one that skips a key's locked first row takes none of the key."""
    commit(served, 1, key="a")
    commit(served, 2, key="a")
    commit(served, 3)
    with served.engine.connect() as other:
        other.execute(select(table).where(table.c.message_id == "m1.0.1").with_for_update())
        assert ids(served.claim("me", 10, LEASE)) == ["m3"]
        other.rollback()
    assert ids(served.claim("me", 10, LEASE)) == ["m1", "m2"]


def test_relays_that_race_keep_the_order_of_each_key(outbox: OutboxStore) -> None:
    """Four relays on eight keys of 40 messages: each key's messages are published in their order."""
    for number in range(320):
        commit(outbox, number, key=f"k{number % 8}")
    broker = Broker()
    relays = [relay(outbox, broker, batch=15) for _ in range(4)]
    stop = threading.Event()
    threads = [threading.Thread(target=each.run, args=(stop,)) for each in relays]
    for each in threads:
        each.start()
    wait_until(lambda: outbox.status().delivered == 320, SOON, "all are delivered", why_not=outbox.status)
    stop.set()
    for each in threads:
        each.join()
    assert len(broker.published) == 320
    for key in range(8):
        numbers = [int(one[1:]) for one in ids(broker.published) if int(one[1:]) % 8 == key]
        assert numbers == sorted(numbers)


def test_transactions_of_one_key_cannot_cross(served: OutboxStore) -> None:
    """A second transaction that writes under a key waits for the first to end, so that ids follow commits."""
    entered = threading.Event()

    def second() -> None:
        with served.engine.begin() as connection:
            write(connection, [message(2)], "a")
            entered.set()

    with served.engine.begin() as connection:
        write(connection, [message(1)], "a")
        thread = threading.Thread(target=second)
        thread.start()
        # A mutation control of its own: a transaction of another key is not held up.
        commit(served, 3, key="b")
        assert not entered.wait(0.3)
    thread.join()
    assert [row for row in columns(served, "message_id") if row != ("m3.0.1",)] == [("m1.0.1",), ("m2.0.1",)]


def test_a_relay_delivers_and_marks(outbox: OutboxStore) -> None:
    """What is confirmed is delivered, once, and kept until the purge."""
    commit(outbox, 1, 2, 3)
    broker = Broker()
    made = relay(outbox, broker)
    made.drain(NEVER)
    made.drain(NEVER)
    assert ids(broker.published) == ["m1", "m2", "m3"]
    assert (outbox.status().delivered, made.tally.delivered) == (3, 3)


def test_messages_of_a_key_are_in_flight_one_at_a_time(outbox: OutboxStore) -> None:
    """A window holds one message of a key: the next is sent when the one before is confirmed."""
    commit(outbox, 1, 2, key="a")
    commit(outbox, 3, 4)
    broker = Broker()
    relay(outbox, broker).drain(NEVER)
    assert broker.calls == [["m1", "m3", "m4"], ["m2"]]


@pytest.mark.parametrize("error", [Refused("full"), ConfirmUnknown("?"), Unroutable("no queue")])
def test_a_message_that_fails_holds_back_its_key_only(outbox: OutboxStore, error: Exception) -> None:
    """Behind a failure its key waits; other messages go on; when it succeeds the key follows in order."""
    commit(outbox, 1, 2, key="a")
    commit(outbox, 3)
    broker = Broker(errors={"m1": error})  # type: ignore[dict-item]
    made = relay(outbox, broker)
    made.relay_once(NEVER)
    assert ids(broker.published) == ["m3"]
    broker.errors.clear()
    with running(made):
        wait_until(lambda: len(broker.published) == 3, SOON, "all are published")
    assert ids(broker.published) == ["m3", "m1", "m2"]


def test_an_invalid_message_is_parked_and_does_not_hold_its_key(outbox: OutboxStore) -> None:
    """What the broker cannot take is parked with its reason, and what is behind it goes on."""
    commit(outbox, 1, 2, key="a")
    broker = Broker(errors={"m1": InvalidMessage("too large")})
    relay(outbox, broker).drain(NEVER)
    assert ids(broker.published) == ["m2"]
    assert columns(outbox, "state", "reason") == [
        ("parked", "InvalidMessage: too large"),
        ("delivered", None),
    ]


def test_a_parked_message_is_published_when_an_operator_retries_it(outbox: OutboxStore) -> None:
    """retry() makes it pending again, with its failures forgotten, and leaves others as they are."""
    commit(outbox, 1, 2)
    broker = Broker(errors={"m1": InvalidMessage("no"), "m2": InvalidMessage("no")})
    relay(outbox, broker).drain(NEVER)
    broker.errors.clear()
    first, _second = outbox.parked()
    assert outbox.retry([first.id]) == 1
    relay(outbox, broker).drain(NEVER)
    assert ids(broker.published) == ["m1"]
    assert (outbox.status().parked, outbox.retry()) == (1, 1)


def test_a_broker_that_is_away_costs_no_message_anything(outbox: OutboxStore) -> None:
    """Nothing is counted or parked while the broker is unreachable, and all is published afterwards."""
    commit(outbox, 1, 2)
    broker = Broker(errors={"m1": BrokerUnavailable("down"), "m2": BrokerUnavailable("down")})
    made = relay(outbox, broker)
    for _ in range(3):
        made.relay_once(NEVER)
        end_leases(outbox)
    assert columns(outbox, "state", "failures") == [("pending", 0), ("pending", 0)]
    broker.errors.clear()
    made.drain(NEVER)
    assert ids(broker.published) == ["m1", "m2"]


def test_what_is_not_reached_in_half_the_lease_is_given_back(outbox: OutboxStore) -> None:
    """A relay that is slow leaves the rest of its batch to others before its lease ends."""
    commit(outbox, 1, 2, key="a")
    broker = Broker()
    made = relay(outbox, broker, lease=timedelta(milliseconds=1))
    made.relay_once(NEVER)
    assert made.tally.released > 0
    assert outbox.status().leased == 0


def test_a_stopping_relay_gives_back_what_it_has_not_published(outbox: OutboxStore) -> None:
    """After a graceful stop nothing is leased: what was confirmed is marked, the rest is free at once."""
    commit(outbox, 1, 2, 3, key="a")
    broker, stop = Broker(), threading.Event()
    made = relay(outbox, broker, on_step=lambda step: stop.set() if step is Step.PUBLISHED else None)
    made.run(stop)
    assert ids(broker.published) == ["m1"]
    assert (outbox.status().delivered, outbox.status().ready, outbox.status().leased) == (1, 2, 0)


def test_a_delayed_message_does_not_wait_twice(outbox: OutboxStore) -> None:
    """Time spent in the outbox is taken off the delay that the routing key carries."""
    due = datetime.now(UTC) + timedelta(seconds=2)
    delayed = message(1, **{h.DUE: epoch_ms(due)}).to(
        "shop_celery_delayed_9", delay_routing_key(timedelta(seconds=900), "shop.work", 10)
    )
    with outbox.engine.begin() as connection:
        write(connection, [delayed])
    broker = Broker()
    relay(outbox, broker).drain(NEVER)
    (published,) = broker.published
    assert published.routing_key in {delay_routing_key(timedelta(seconds=s), "shop.work", 10) for s in (1, 2)}
    assert published.exchange == "shop_celery_delayed_9"


def test_a_relay_is_woken_by_a_commit(outbox: OutboxStore) -> None:
    """PostgreSQL tells the relay at once; elsewhere it looks again after its poll."""
    told = outbox.engine.dialect.name == "postgresql"
    broker = Broker()
    poll = timedelta(hours=1) if told else timedelta(milliseconds=20)
    with running(relay(outbox, broker, wakeup_for(outbox.engine), poll=poll)):
        for number in range(1, 4):
            commit(outbox, number)
            wait_until(partial(_has, broker, number), SOON, f"message {number} is published")


def _has(broker: Broker, count: int) -> bool:
    return len(broker.published) == count


def test_delivered_rows_are_purged_after_their_retention(outbox: OutboxStore) -> None:
    """Only what was delivered longer ago goes; pending and parked rows never do."""
    commit(outbox, 1, 2, 3)
    broker = Broker(errors={"m2": InvalidMessage("no")})
    relay(outbox, broker, batch=2).relay_once(NEVER)
    assert outbox.purge(timedelta(hours=1)) == 0
    wait_until(lambda: outbox.purge(timedelta(0)) == 1, SOON, "the delivered row is purged")
    assert columns(outbox, "message_id", "state") == [("m2.0.1", "parked"), ("m3.0.1", "pending")]


def test_the_status_counts_every_row_once(outbox: OutboxStore) -> None:
    """Ready, leased, waiting, parked and delivered rows, and the age of the oldest that is pending."""
    assert outbox.status().oldest is None
    commit(outbox, 1, 2, 3)
    (one, two, three) = outbox.claim("me", 3, LEASE)
    outbox.settle([(one, Again(LEASE, "no", counted=True)), (two, Park("no")), (three, Delivered())])
    commit(outbox, 4)
    outbox.claim("me", 1, LEASE)
    commit(outbox, 5)
    status = outbox.status()
    counts = (status.ready, status.leased, status.waiting, status.parked, status.delivered)
    assert counts == (1, 1, 1, 1, 1)
    assert status.oldest is not None
    assert timedelta(0) <= status.oldest < timedelta(minutes=5)
    assert [row.message_id for row in outbox.troubled()] == ["m1.0.1", "m2.0.1"]


def _of_a_later_release(connection: Connection) -> None:
    for change in (
        "ALTER TABLE unlost_outbox ADD COLUMN tenant VARCHAR(64)",
        "ALTER TABLE unlost_outbox ADD COLUMN weight INTEGER NOT NULL DEFAULT 1",
        "CREATE INDEX ix_unlost_outbox_tenant ON unlost_outbox (tenant, id)",
    ):
        connection.execute(text(change))


def test_a_later_release_migrates_while_this_one_works(outbox: OutboxStore) -> None:
    """Writers and relays of this release go on, before, during and after tables get what it does not know."""
    later = (*MIGRATIONS, Migration(2, _of_a_later_release))
    written, over, broker = count(1), threading.Event(), Broker()

    def write_on() -> int:
        number = 0
        while not over.wait(0.005):
            number = next(written)
            commit(outbox, number, key=f"k{number % 3}")
        return number

    with ThreadPoolExecutor(1) as writer, running(relay(outbox, broker)):
        writing = writer.submit(write_on)
        wait_until(lambda: len(broker.published) > 20, SOON, "some are published before")
        database = Database(outbox.engine.url.render_as_string(hide_password=False))
        assert migrate(database, PART, later) == [2]
        database.dispose()
        before = len(broker.published)
        wait_until(lambda: len(broker.published) > before + 20, SOON, "some are published after")
        over.set()
        last = writing.result(30)
        wait_until(lambda: not outbox.status().pending, SOON, "all are published")
    assert sorted(ids(broker.published)) == sorted(f"m{n}" for n in range(1, last + 1))
    assert outbox.missing_versions() == []
