"""A link between a client and a server can be broken in every way that networks know, and healed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from urllib.parse import urlsplit

import pytest

from unlost.testing.proxy import Fault, Link

SECONDS = 10.0


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that sends back what it gets; yields its URL."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve(client: socket.socket) -> None:
        with client, suppress(OSError):
            while data := client.recv(65536):
                client.sendall(data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def connect(link: Link) -> socket.socket:
    """Connect through a link."""
    parts = urlsplit(link.url)
    return socket.create_connection((parts.hostname, parts.port), SECONDS)


def asked(client: socket.socket, data: bytes = b"hello") -> bytes:
    """Send and return what comes back."""
    client.sendall(data)
    return client.recv(65536)


def test_a_whole_link_passes_everything(echo: str) -> None:
    """Without a fault bytes pass both ways, and the URL keeps everything but its place."""
    with Link(echo) as link, connect(link) as client:
        assert asked(client) == b"hello"
        assert link.url.endswith("/0")


def test_of_several_servers_one_that_answers_is_taken(echo: str) -> None:
    """As behind a load balancer, a server that is down is passed over."""
    with Link(f"redis://127.0.0.1:1/0;{echo}") as link:
        for _ in range(3):
            with connect(link) as client:
                assert asked(client) == b"hello"


def test_a_reset_ends_open_and_new_connections(echo: str) -> None:
    """The client gets a reset, on the connection it has and on one it opens; afterwards all is well."""
    with Link(echo) as link:
        with connect(link) as client:
            assert asked(client) == b"hello"
            link.injure(Fault(kind="reset"))
            with pytest.raises(ConnectionError):
                asked(client) or asked(client)
        with pytest.raises(ConnectionError), connect(link) as client:
            asked(client) or asked(client)
        link.heal()
        with connect(link) as client:
            assert asked(client) == b"hello"


def test_a_black_hole_swallows_and_its_victims_are_reset_at_the_end(echo: str) -> None:
    """Nothing comes back, no error either; a connection that lost bytes is not used again."""
    with Link(echo) as link, connect(link) as client:
        assert asked(client) == b"hello"
        link.injure(Fault(kind="black_hole"))
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            asked(client)
        client.settimeout(SECONDS)
        link.heal()
        with pytest.raises(ConnectionError):
            asked(client) or asked(client)


def test_latency_delays(echo: str) -> None:
    """Each way takes the delay at least."""
    with Link(echo) as link, connect(link) as client:
        link.injure(Fault(kind="latency", delay=timedelta(milliseconds=50)))
        began = time.monotonic()
        assert asked(client) == b"hello"
        assert time.monotonic() - began >= 0.1


def test_a_cut_comes_in_the_middle(echo: str) -> None:
    """Of what is sent so many bytes pass, then the connection breaks."""
    with Link(echo) as link, connect(link) as client:
        assert asked(client) == b"hello"
        link.injure(Fault(kind="cut", bytes=13))
        client.sendall(b"0123456789")
        got = b""
        with pytest.raises(ConnectionError):  # noqa: PT012 - a reset may overtake the bytes before it
            while data := client.recv(65536):
                got += data
            raise ConnectionError
        assert got in (b"", b"012")
