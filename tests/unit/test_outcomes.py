"""What processes tell is handled as it comes: in one read, in parts, and after an error."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from inspect import isgenerator
from types import SimpleNamespace
from typing import Any

import pytest

from unlost.tasks.outcomes import ALL, Outcomes


class Hub:
    """As much of kombu's event loop as reading takes."""

    def __init__(self) -> None:
        self.readers: dict[int, tuple[Any, ...]] = {}

    def add_reader(self, pipe: int, callback: Any, *arguments: Any) -> None:
        """Listen to a pipe."""
        self.readers[pipe] = callback, arguments

    def remove_reader(self, pipe: int) -> None:
        """Listen no more."""
        self.readers.pop(pipe, None)

    def turn(self, pipe: int) -> None:
        """Do as the loop does when a pipe is readable."""
        callback, arguments = self.readers[pipe]
        if isgenerator(callback):
            next(callback, None)
        else:
            callback(*arguments)


class Child:
    """A pipe to the pool, and the pool with it.

    ``fails`` are messages whose handling raises.
    """

    def __init__(self) -> None:
        self.pipe, self.end = os.pipe()
        os.set_blocking(self.pipe, False)
        self.hub = Hub()
        self.heard: list[Any] = []
        self.fails: list[Any] = []
        self.closed: list[Any] = []
        self.untracked: list[Any] = []
        self.process = SimpleNamespace(outqR_fd=self.pipe)
        self.pool = SimpleNamespace(
            _result_handler=SimpleNamespace(on_state_change=self.hear, handle_event=None),
            _fileno_to_outq={self.pipe: self.process},
            on_process_up=lambda process: self.hub.add_reader(process.outqR_fd, "the pool's own"),
            handle_result_event=None,
            destroy_queues=lambda _queues, process: self.closed.append(process),
            _untrack_child_process=lambda process, _hub: self.untracked.append(process),
        )
        self.outcomes = Outcomes(self.pool, self.hub)
        self.outcomes.install()

    def hear(self, message: Any) -> None:
        """Handle a message."""
        self.heard.append(message)
        if message in self.fails:
            raise ConnectionError(message)

    def tell(self, data: bytes) -> None:
        """Write, and have the loop see it."""
        os.write(self.end, data)
        self.hub.turn(self.pipe)

    def is_read_whole(self) -> bool:
        """Whether the loop has the reader for what begins with a message."""
        return self.hub.readers[self.pipe] == (self.outcomes.read, (self.pipe,))


@pytest.fixture
def child() -> Iterator[Child]:
    """A child."""
    made = Child()
    yield made
    os.close(made.pipe)
    os.close(made.end)


def packed(message: Any) -> bytes:
    """Return a message as billiard sends it."""
    body = pickle.dumps(message)
    return len(body).to_bytes(4, "big") + body


def test_messages_that_came_together_are_handled_in_their_order(child: Child) -> None:
    """One read is enough for all."""
    child.tell(b"".join(packed(number) for number in (1, 2, 3)))
    assert (child.heard, child.is_read_whole()) == ([1, 2, 3], True)


@pytest.mark.parametrize("cut", [1, 3, 4, 5, -1])
def test_a_message_in_two_parts_is_handled_when_it_is_whole(child: Child, cut: int) -> None:
    """Wherever it is cut, and with another one behind it."""
    first, second = packed("first"), packed("second")
    child.tell(first[:cut])
    assert (child.heard, child.is_read_whole()) == ([], False)
    child.tell(first[cut:] + second[:cut])
    assert (child.heard, child.is_read_whole()) == (["first"], False)
    child.tell(second[cut:])
    child.hub.turn(child.pipe)
    assert (child.heard, child.is_read_whole()) == (["first", "second"], True)


def test_a_message_larger_than_a_pipe_is_handled_once(child: Child) -> None:
    """It comes in as many parts as it takes."""
    data = memoryview(packed("x" * (3 * ALL)))
    while data:
        child.tell(bytes(data[:ALL]))
        data = data[ALL:]
    assert [len(message) for message in child.heard] == [3 * ALL]


def test_an_error_costs_no_message(child: Child) -> None:
    """What lies behind the one whose handling raised is handled when the worker is connected again."""
    child.fails = ["bad"]
    with pytest.raises(ConnectionError):
        child.tell(packed("bad") + packed("good"))
    assert child.heard == ["bad"]
    child.outcomes.install()
    child.hub.turn(child.pipe)
    assert (child.heard, child.is_read_whole()) == (["bad", "good"], True)


def test_what_has_begun_is_read_on_after_another_registration(child: Child) -> None:
    """A connection to the broker that is lost in between takes nothing of it away."""
    message = packed("message")
    child.tell(message[:5])
    child.outcomes.install()
    child.tell(message[5:])
    assert child.heard == ["message"]


def test_a_pipe_that_nobody_writes_to_any_more_is_not_listened_to(child: Child) -> None:
    """Its process is gone: it has closed the pipe, or the pool has forgotten it."""
    child.tell(packed("last")[:5])
    child.pool._fileno_to_outq.clear()
    child.tell(b"x")
    assert (child.heard, child.hub.readers) == ([], {})


def test_a_new_process_begins_anew(child: Child) -> None:
    """Its pipe may have the number of another's, which was killed within a message."""
    child.tell(packed("torn")[:5])
    child.pool.on_process_up(child.process)
    child.tell(packed("new"))
    assert (child.heard, child.is_read_whole()) == (["new"], True)


@pytest.mark.parametrize("is_its_own", [True, False])
def test_a_closed_pipe_is_forgotten_unless_its_number_is_anothers(child: Child, is_its_own: bool) -> None:
    """The numbers of a dead process are soon others'; what its successor has by then stays."""
    dead = child.process if is_its_own else SimpleNamespace(outqR_fd=child.pipe)
    child.pool.destroy_queues((), dead)
    assert (child.closed, child.untracked) == ([dead], [dead])
    assert child.pool._fileno_to_outq == ({} if is_its_own else {child.pipe: child.process})


def test_nothing_to_read_is_no_end(child: Child) -> None:
    """The loop may call for no reason."""
    child.hub.turn(child.pipe)
    assert child.is_read_whole()
