"""What operators do to the ledger's keys in Redis does no harm to other records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.stores import Servers, fresh_url
from unlost.core.settlement import Held
from unlost.idempotency.redis import RedisStore
from unlost.testing.conformance import MESSAGE, OTHER, acquire, granted


@pytest.fixture
def store(store_servers: Servers, tmp_path: Path) -> Iterator[RedisStore]:
    """Return an empty store."""
    with ExitStack() as stack:
        yield RedisStore(fresh_url("redis", store_servers, tmp_path, stack))


def test_who_held_what_was_deleted_by_hand_ends_nobody_elses_lease(store: RedisStore) -> None:
    """The record that is made anew is its new holder's alone; what else the old one holds ends."""
    granted(store, holder="old")
    granted(store, OTHER, holder="old")
    store.server.call("DEL", f"{{unlost}}:{MESSAGE}")
    granted(store, holder="new")
    assert store.release("old")
    assert not store.release("old")
    assert isinstance(acquire(store), Held)
    assert not isinstance(acquire(store, OTHER), Held)


def test_an_operator_can_read_a_record(store: RedisStore) -> None:
    """When its lease expires, when it was changed, and the rest of the row as JSON."""
    row = granted(store, holder="me")
    expires, changed, rest = store.server.call("GET", f"{{unlost}}:{MESSAGE}").split(" ", 2)
    assert (float(expires), len(expires), len(changed)) == (row.expires, 17, 10)
    assert rest == f'["leased",0,1,1,"me",null,false,0,0,null,{row.started_ms},null,null]'
