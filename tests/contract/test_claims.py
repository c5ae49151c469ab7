"""Every claim store keeps payloads, and the claim check replaces and returns them unharmed."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.outboxes import message
from unlost.claims.check import ClaimCheck, sweepable
from unlost.claims.stores import ClaimStore, SqlPayloads, open_claims
from unlost.core import headers as h
from unlost.core.claims import body_of, checked_in, claim_of, key_of, parse_key, read_claim, waiting_of
from unlost.core.clock import epoch_ms
from unlost.core.ids import Generation, MessageId
from unlost.core.settlement import Row, State
from unlost.database.database import Database
from unlost.errors import ClaimLost, ConfigurationError

RETENTION = timedelta(days=30)
KEY = key_of(MessageId("shop.pay", "m1"), date(2026, 1, 31))


@pytest.fixture(params=["file", "memory", "sql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ClaimStore]:
    """Return an empty store of each kind."""
    if request.param == "sql":
        database = Database(f"sqlite:///{tmp_path}/claims.sqlite")
        yield SqlPayloads(database)
        database.dispose()
    elif request.param == "memory":
        yield open_claims(f"memory://{tmp_path.name}")
    else:
        yield open_claims(f"file://{tmp_path}/claims")


def test_a_payload_comes_back_as_it_was_put(store: ClaimStore) -> None:
    """Bytes of all values, under the key they were put."""
    store.put(KEY, bytes(range(256)) * 1000)
    assert store.get(KEY) == bytes(range(256)) * 1000
    assert list(store.iter_keys()) == [KEY]


def test_a_payload_that_is_gone_is_lost(store: ClaimStore) -> None:
    """Deleted, twice even, it is a ClaimLost that names the key."""
    store.put(KEY, b"x")
    store.delete(KEY)
    store.delete(KEY)
    with pytest.raises(ClaimLost, match="2026-01-31"):
        store.get(KEY)
    assert list(store.iter_keys()) == []


def test_sql_payloads_are_kept_by_every_database(database_url: str) -> None:
    """A payload larger than any packet default is kept by SQLite, PostgreSQL and MariaDB."""
    database = Database(database_url)
    payloads = SqlPayloads(database)
    payloads.put(KEY, b"\x00\xff" * 2_000_000)
    assert payloads.get(KEY) == b"\x00\xff" * 2_000_000
    payloads.delete(KEY)
    assert list(payloads.iter_keys()) == []
    database.dispose()


def test_a_large_body_is_replaced_and_a_small_one_is_not(store: ClaimStore) -> None:
    """Up to the threshold the message is the same; above it, it carries a claim, and all else stays."""
    check = ClaimCheck(store, above=100, retention=RETENTION)
    small, large = replace(message(1), body=b"x" * 100), replace(message(2), body="é" * 51)
    assert check.check_in(small) is small
    travels = check.check_in(large)
    assert (travels.routing_key, travels.message_id) == (large.routing_key, large.message_id)
    assert travels.headers == {**large.headers, h.CLAIM: 1}
    claim = read_claim(json.loads(travels.body))
    assert claim.size == 102
    assert check.fetch(claim).decode() == large.body
    assert check.check_in(travels) is travels


def test_who_waits_travels_with_the_claim() -> None:
    """Errbacks and chord are in the message, in the place of nothing else; without room they are not."""
    embed = {"callbacks": [{"task": "t.a"}], "errbacks": [{"task": "t.b"}], "chain": None, "chord": None}
    large = replace(message(1), body=json.dumps([["x" * 200], {}, embed]))
    claim = claim_of(large, datetime.now(UTC), RETENTION)
    travels = checked_in(large, claim, body_of(large), room=200)
    assert read_claim(json.loads(travels.body)) == claim
    assert waiting_of(travels.body) == {"errbacks": [{"task": "t.b"}]}
    assert waiting_of(checked_in(large, claim, body_of(large), room=20).body) == {}


@pytest.mark.parametrize(
    ("compression", "waiting"), [("application/x-gzip", {"errbacks": [{"task": "t.b"}]}), ("x-ours", {})]
)
def test_who_waits_is_read_in_a_compressed_body(
    store: ClaimStore, compression: str, waiting: Mapping[str, Any]
) -> None:
    """In one that only its worker can read nobody is found, and it travels all the same."""
    body = zlib.compress(json.dumps([list(range(200)), {}, {"errbacks": [{"task": "t.b"}]}]).encode())
    large = replace(message(1), body=body)
    large = replace(large, headers={**large.headers, "compression": compression})
    travels = ClaimCheck(store, above=100, retention=RETENTION).check_in(large)
    assert waiting_of(travels.body) == waiting
    assert store.get(read_claim(json.loads(travels.body)).key) == body


@pytest.mark.parametrize("body", [b"\xff", "[", "[]", "1", '{"claim": {}}', '{"waiting": [1]}'])
def test_a_body_that_says_nothing_of_who_waits(body: bytes | str) -> None:
    """Whatever else it is."""
    assert waiting_of(body) == {}


def test_a_payload_that_was_changed_is_lost(store: ClaimStore) -> None:
    """The checksum in the message decides, not the store."""
    check = ClaimCheck(store, above=0, retention=RETENTION)
    claim = read_claim(json.loads(check.check_in(message(1)).body))
    store.delete(claim.key)
    store.put(claim.key, b"[[], {}, {} ]")
    with pytest.raises(ClaimLost, match="checksum"):
        check.fetch(claim)


@pytest.mark.parametrize(
    "payload",
    [None, [], {}, {"claim": None}, {"claim": {"key": KEY}}, {"claim": {"key": "../../etc/passwd"}}],
)
def test_what_is_no_claim_is_lost(payload: object) -> None:
    """A body that names no payload is refused, whatever it is."""
    with pytest.raises(ClaimLost):
        read_claim(payload)


@pytest.mark.parametrize(
    "key", ["/etc/passwd", "2026-01-31/../x,0,y", "2026-01-31/a/b/../c,0,y", "2026-01-31/a/b"]
)
def test_a_key_cannot_lead_out_of_the_store(key: str) -> None:
    """Only a day and two names are a key."""
    assert parse_key(key) is None


@pytest.mark.parametrize("task", ["shop.pay", "a/b, c", "..é"])
def test_a_key_says_whose_it_is(task: str) -> None:
    """Whatever task name and id hold, they come back from the key."""
    identity = MessageId(task, "id/with,all~", 2)
    assert parse_key(key_of(identity, date(2026, 1, 31))) == (date(2026, 1, 31), identity)


def test_the_retention_counts_from_when_the_message_may_run(store: ClaimStore) -> None:
    """A message that is due in a year keeps its payload for a year and its retention."""
    due = datetime.now(UTC) + timedelta(days=365)
    check = ClaimCheck(store, above=0, retention=RETENTION)
    check.check_in(message(1, **{h.DUE: epoch_ms(due)}))
    (key,) = store.iter_keys()
    parsed = parse_key(key)
    assert parsed is not None
    assert parsed[0] == (due + RETENTION).date()


@pytest.mark.parametrize(
    ("state", "swept"),
    [
        (None, True),
        (State.DONE, True),
        (State.CANCELLED, True),
        (State.DEAD, False),
        (State.WAITING, False),
        (State.LEASED, False),
    ],
)
def test_only_what_nobody_needs_is_swept(store: ClaimStore, state: State | None, swept: bool) -> None:
    """Past its retention a payload goes, unless its message is under way or is a dead letter."""
    store.put(KEY, b"x")
    row = None if state is None else Row(state=state, generation=Generation(0, 1), token=1)
    inside, after = datetime(2026, 1, 31, 23, tzinfo=UTC), datetime(2026, 2, 1, 1, tzinfo=UTC)
    assert list(sweepable(store, lambda _message: row, inside)) == []
    found = [key for key, _message in sweepable(store, lambda _message: row, after)]
    assert found == ([KEY] if swept else [])


def test_a_store_that_nobody_knows_is_a_configuration_error() -> None:
    """A path is no URL, and an unknown scheme says so."""
    with pytest.raises(ConfigurationError, match="file:///"):
        open_claims("/var/claims")
    with pytest.raises(ConfigurationError, match="nosuch"):
        open_claims("nosuch://bucket")
