"""Frames are read in as few reads as they came in, and none is cut or lost."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from struct import pack
from typing import Any

import pytest
from amqp.exceptions import RecoverableConnectionError
from amqp.transport import TCPTransport

from unlost.broker.readahead import AHEAD, AT_ONCE, read_ahead, read_all, read_left

#: A frame that does not end what it is a part of.
PART = b"part"


class Reader(TCPTransport):
    """A transport on a socket that is connected already, which counts its reads and changes of mode."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__("127.0.0.1:1")
        self.sock = connected
        self._setup_transport()
        self.reads = self.changes = 0
        self._quick_recv: Callable[[int], bytes] = self._counted
        read_ahead(self)

    def _counted(self, size: int) -> bytes:
        self.reads += 1
        return self.sock.recv(size)

    def having_timeout(self, timeout: float | None) -> AbstractContextManager[socket.socket]:
        """Wait this long at most for the socket."""
        self.changes += 1
        made: AbstractContextManager[socket.socket] = super().having_timeout(timeout)
        return made


@pytest.fixture
def ends() -> Iterator[tuple[Reader, socket.socket]]:
    """A transport and the other end of its socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = Reader(ours)
        yield reader, theirs


def frame(payload: bytes) -> bytes:
    """Return a frame of a method on channel 1."""
    return pack(">BHI", 1, 1, len(payload)) + payload + b"\xce"


def frames_of(reader: Reader, count: int) -> list[Any]:
    """Read so many frames."""
    return [bytes(reader.read_frame()[2]) for _ in range(count)]


def test_frames_that_are_there_are_taken_in_one_read(ends: tuple[Reader, socket.socket]) -> None:
    """Ten small frames in the socket cost one read."""
    reader, theirs = ends
    theirs.sendall(b"".join(frame(b"%d" % n) for n in range(10)))
    assert frames_of(reader, 10) == [b"%d" % n for n in range(10)]
    assert reader.reads == 1


def test_a_frame_that_is_cut_is_put_together(ends: tuple[Reader, socket.socket]) -> None:
    """A timeout in the middle of a frame loses nothing of it, nor of what follows."""
    reader, theirs = ends
    whole = frame(b"first") + frame(b"second")
    theirs.sendall(whole[:9])
    with reader.having_timeout(0.01), pytest.raises(TimeoutError):
        reader.read_frame()
    theirs.sendall(whole[9:])
    assert frames_of(reader, 2) == [b"first", b"second"]


def test_a_frame_larger_than_the_buffer_is_read_whole(ends: tuple[Reader, socket.socket]) -> None:
    """A large body and the frame behind it arrive as they were sent."""
    reader, theirs = ends
    large = bytes(3 * AHEAD)
    theirs.sendall(frame(large) + frame(b"next"))
    assert frames_of(reader, 2) == [large, b"next"]


class Connection:
    """As much of a connection as its reader needs; a frame is a delivery, or a part of one."""

    def __init__(self, transport: Reader) -> None:
        self.transport = transport
        self.connected = True
        self.received: list[bytes] = []

    def blocking_read(self, timeout: float) -> bool:
        """Receive one frame."""
        with self.transport.having_timeout(timeout):
            frame = self.transport.read_frame()
        return self.on_inbound_frame(frame)

    def on_inbound_frame(self, frame: tuple[int, int, bytes]) -> bool:
        """Take a frame; returns whether it ends a method."""
        if frame[2] != PART:
            self.received.append(frame[2])
        return frame[2] != PART


class Loop:
    """An event loop that notes what it is to do next."""

    def __init__(self) -> None:
        self.next: list[Any] = []

    def call_soon(self, *call: Any) -> None:
        """Note a call."""
        self.next.append(call)


def test_all_that_was_read_is_handled_in_one_turn(ends: tuple[Reader, socket.socket]) -> None:
    """What no longer makes the socket readable is not left for a turn that nothing would bring about."""
    reader, theirs = ends
    connection, loop = Connection(reader), Loop()
    theirs.sendall(b"".join(frame(b"%d" % n) for n in range(3)))
    read_all(connection, loop)
    assert connection.received == [b"0", b"1", b"2"]
    assert reader.reads == 1
    assert not loop.next


def test_only_what_is_not_there_yet_is_waited_for(ends: tuple[Reader, socket.socket]) -> None:
    """The frames of a delivery that came together cost one change of the socket's mode."""
    reader, theirs = ends
    connection = Connection(reader)
    theirs.sendall(frame(PART) + frame(PART) + frame(b"whole"))
    read_all(connection, Loop())
    assert (connection.received, reader.changes) == ([b"whole"], 1)


def test_a_delivery_that_is_cut_waits_for_its_rest(ends: tuple[Reader, socket.socket]) -> None:
    """Its beginning stays where it is, and the rest makes the socket readable."""
    reader, theirs = ends
    connection, loop = Connection(reader), Loop()
    theirs.sendall(frame(b"whole") + frame(b"cut")[:5])
    read_all(connection, loop)
    assert connection.received == [b"whole"]
    theirs.sendall(frame(b"cut")[5:])
    read_all(connection, loop)
    assert connection.received == [b"whole", b"cut"]
    assert not loop.next


def test_a_flood_does_not_keep_the_loop(ends: tuple[Reader, socket.socket]) -> None:
    """After some deliveries the others' turn comes, and the rest is not forgotten."""
    reader, theirs = ends
    connection, loop = Connection(reader), Loop()
    theirs.sendall(b"".join(frame(b"%d" % n) for n in range(AT_ONCE + 1)))
    read_all(connection, loop)
    assert len(connection.received) == AT_ONCE
    ((again, *arguments),) = loop.next
    again(*arguments)
    assert len(connection.received) == AT_ONCE + 1


def test_what_came_with_an_answer_is_handled_before_the_loop_waits(
    ends: tuple[Reader, socket.socket],
) -> None:
    """Whoever waited for a method's answer has read deliveries too, more than are handled at once."""
    reader, theirs = ends
    connection = Connection(reader)
    deliveries = [b"%d" % n for n in range(2 * AT_ONCE + 1)]
    theirs.sendall(frame(b"answer") + b"".join(map(frame, deliveries)) + frame(b"cut")[:5])
    assert bytes(reader.read_frame()[2]) == b"answer"
    assert read_left(connection)
    assert connection.received == deliveries
    theirs.sendall(frame(b"cut")[5:])
    read_left(connection)
    assert connection.received == [*deliveries, b"cut"]


def test_a_loop_that_waits_with_nothing_left_reads_nothing(ends: tuple[Reader, socket.socket]) -> None:
    """It costs no system call, whatever the socket has; a connection that has ended is left alone."""
    reader, theirs = ends
    connection = Connection(reader)
    theirs.sendall(frame(b"later"))
    assert not read_left(connection)
    assert reader.reads == 0
    assert bytes(reader.read_frame()[2]) == b"later"
    reader._read_buffer = frame(b"left")
    connection.connected = False
    assert not read_left(connection)
    assert not connection.received


def test_nothing_to_read_is_no_error_and_a_lost_connection_is(ends: tuple[Reader, socket.socket]) -> None:
    """The loop goes on, or connects again."""
    reader, theirs = ends
    connection, loop = Connection(reader), Loop()
    read_all(connection, loop)
    assert not connection.received
    theirs.close()
    with pytest.raises(OSError, match="closed"):
        read_all(connection, loop)
    connection.connected = False
    with pytest.raises(RecoverableConnectionError):
        read_all(connection, loop)
