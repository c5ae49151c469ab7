"""A Redis server answers the command that was sent, whatever became of those before it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.interrupts import Interrupted, interrupted_after
from tests.support.stores import Servers, fresh_url
from unlost.database.redis import RedisServer
from unlost.errors import StoreUnavailable


@pytest.fixture
def server(store_servers: Servers, tmp_path: Path) -> Iterator[RedisServer]:
    """Return an empty server."""
    with ExitStack() as stack:
        yield RedisServer(fresh_url("redis", store_servers, tmp_path, stack))


def test_an_answer_that_nobody_waited_for_is_not_the_next_commands(server: RedisServer) -> None:
    """Else a child would go on one answer behind, and take what is done for new."""
    server.call("SET", "a", "1")
    with pytest.raises(Interrupted), interrupted_after(0.2):
        server.call("BLPOP", "nobody", 30)
    assert [server.call("GET", "a"), server.call("PING")] == ["1", "PONG"]


def test_a_refusal_is_an_answer(server: RedisServer) -> None:
    """The next command gets its own."""
    with pytest.raises(StoreUnavailable):
        server.call("NO-SUCH-COMMAND")
    assert server.call("PING") == "PONG"


def test_however_often_it_was_connected_to_it_can_be_again(server: RedisServer) -> None:
    """A store that is down for minutes is asked hundreds of times, and then it is back."""
    for _ in range(150):
        server.close()
        assert server.call("PING") == "PONG"


def test_however_many_threads_have_asked_the_next_can(server: RedisServer) -> None:
    """They hand on a connection; those that ask at the same time have one each."""
    answers = []
    for _ in range(150):
        thread = threading.Thread(target=lambda: answers.append(server.call("PING")))
        thread.start()
        thread.join()
    assert answers == ["PONG"] * 150
