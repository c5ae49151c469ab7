"""TCP proxies between a client and a server that do what networks do: fall silent, delay, break."""

from __future__ import annotations

import itertools
import random
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, Self
from urllib.parse import urlsplit, urlunsplit

_DEFAULT_PORTS = {"postgresql": 5432, "mariadb": 3306, "mysql": 3306, "redis": 6379}
_AMQP_PORT = 5672
_CONNECT_PATIENCE = timedelta(seconds=5)
#: Closing a socket with this option sends RST instead of FIN (socket(7), SO_LINGER).
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Passes connections on to the server of a URL; subclasses decide what becomes of the bytes.

    Args:
        url: Of the server; of several, separated by ``;`` as kombu takes them, each connection goes to
            the next one that answers, as behind a load balancer.

    Attributes:
        url: The same, through the proxy.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url.split(";", 1)[0])
        self._targets = [_target(each) for each in url.split(";")]
        self._turn = itertools.count()
        self._server = socket.create_server(("127.0.0.1", 0))
        userinfo, at, _ = parts.netloc.rpartition("@")
        place = f"{userinfo}{at}127.0.0.1:{self._server.getsockname()[1]}"
        self.url = urlunsplit(parts._replace(netloc=place))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._server, *self._open):
            _shut(each)
        for thread in self._threads:
            thread.join()
        for each in (self._server, *self._open):
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            broker = self._connect()
            if broker is None:
                client.close()
                continue
            self._open += [client, broker]
            self._opened(client, broker)
            for source, sink in ((client, broker), (broker, client)):
                thread = threading.Thread(
                    target=self._pass_on, args=(source, sink, source is broker), daemon=True
                )
                self._threads.append(thread)
                thread.start()

    def _connect(self) -> socket.socket | None:
        first = next(self._turn)
        for number in range(len(self._targets)):
            with suppress(OSError):
                target = self._targets[(first + number) % len(self._targets)]
                connection = socket.create_connection(target, _CONNECT_PATIENCE.total_seconds())
                connection.settimeout(None)
                return connection
        return None

    def _opened(self, client: socket.socket, broker: socket.socket) -> None:
        """Take note of a new connection."""

    def _pass_on(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        # An error on either side ends the connection, as its close does.
        with suppress(OSError):
            while data := source.recv(65536):
                self._forward(data, source, sink, answers=answers)
        _shut(sink)

    def _forward(self, data: bytes, source: socket.socket, sink: socket.socket, *, answers: bool) -> None:
        raise NotImplementedError


class MuteProxy(Proxy):
    """Mutes the connections that are open on demand."""

    def __init__(self, url: str) -> None:
        self._muted: set[socket.socket] = set()
        super().__init__(url)

    def mute(self) -> None:
        """Drop all answers on the connections that are open now, for good; later ones are whole."""
        self._muted.update(self._open)

    def _forward(self, data: bytes, source: socket.socket, sink: socket.socket, *, answers: bool) -> None:
        if not (answers and source in self._muted):
            sink.sendall(data)


class HoleProxy(MuteProxy):
    """Passes everything on, and on demand nothing at all, as a network that has lost its routes."""

    def __init__(self, url: str) -> None:
        self._is_hole = False
        super().__init__(url)

    @contextmanager
    def hole(self) -> Iterator[None]:
        """Swallow what is sent in both directions; connections of before and of meanwhile stay lost."""
        self._is_hole = True
        self.mute()
        try:
            yield
        finally:
            self.mute()
            self._is_hole = False

    def _forward(self, data: bytes, source: socket.socket, sink: socket.socket, **_: bool) -> None:
        if not (self._is_hole or source in self._muted):
            sink.sendall(data)


class DelayingProxy(Proxy):
    """Holds back what the broker answers, and lets it through later, complete and in order."""

    def __init__(self, url: str) -> None:
        self._flows = threading.Event()
        self._flows.set()
        #: Bytes that went to the broker so far.
        self.sent = 0
        super().__init__(url)

    def hold(self) -> None:
        """Let no answer through."""
        self._flows.clear()

    def release(self) -> None:
        """Let through what was held back, and all that follows."""
        self._flows.set()

    def __exit__(self, *exc: object) -> None:
        self.release()
        super().__exit__(*exc)

    def _forward(self, data: bytes, _: socket.socket, sink: socket.socket, *, answers: bool) -> None:
        if answers:
            self._flows.wait()
        sink.sendall(data)
        self.sent += 0 if answers else len(data)


class FlakyProxy(Proxy):
    """Cuts or black-holes each connection after a number of bytes drawn at random, until it is healed.

    Args:
        url: Of the broker.
        rng: Draws the positions; seed it to draw them again.
        most: The longest life of a connection, in bytes of both directions together.
    """

    def __init__(self, url: str, rng: random.Random, *, most: int) -> None:
        self._rng = rng
        self._most = most
        self._healed = False
        self._lock = threading.Lock()
        #: By either socket of a connection: what is left of its life, in a list that both share.
        self._left: dict[socket.socket, list[int]] = {}
        self._cuts: dict[socket.socket, bool] = {}
        self.cut = 0
        self.holes = 0
        super().__init__(url)

    def heal(self) -> None:
        """Harm no connection that is opened from now on."""
        self._healed = True

    def _opened(self, client: socket.socket, broker: socket.socket) -> None:
        left = [1 << 60 if self._healed else self._rng.randint(1, self._most)]
        cuts = self._rng.random() < 0.7
        for each in (client, broker):
            self._left[each], self._cuts[each] = left, cuts

    def _forward(self, data: bytes, source: socket.socket, sink: socket.socket, **_: bool) -> None:
        with self._lock:
            left = self._left[source]
            passed, was = data[: max(0, left[0])], left[0]
            left[0] -= len(data)
            ends = left[0] < 0 <= was
            self.cut += ends and self._cuts[source]
            self.holes += ends and not self._cuts[source]
        if passed:
            sink.sendall(passed)
        if ends and self._cuts[source]:
            _shut(source)
            _shut(sink)


FaultKind = Literal["latency", "reset", "black_hole", "cut"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong with a link.

    Attributes:
        kind: ``latency`` delays what passes; ``reset`` ends every connection with RST, new ones too;
            ``black_hole`` swallows all bytes and says nothing; ``cut`` ends each connection after ``bytes``
            more, in the middle of a frame.
        delay: Of each read that passes, for ``latency``.
        bytes: That each connection may still pass, in both directions together, for ``cut``.
    """

    kind: FaultKind
    delay: timedelta = timedelta(milliseconds=200)
    bytes: int = 1000


class Link(Proxy):
    """A link that can be broken and healed any number of times."""

    def __init__(self, url: str) -> None:
        self._fault: Fault | None = None
        #: What each socket may still pass before it is cut; both of a connection share a list.
        self._left: dict[socket.socket, list[int]] = {}
        self._pair: dict[socket.socket, socket.socket] = {}
        #: Those that have lost bytes: they cannot be used again when the link is healed.
        self._torn: set[socket.socket] = set()
        super().__init__(url)

    def injure(self, fault: Fault) -> None:
        """Break it, for open and for new connections, until :meth:`heal`."""
        budget = fault.bytes
        for each in list(self._left):
            self._left[each] = self._left[self._pair[each]] = [budget]
        self._fault = fault
        if fault.kind == "reset":
            self._reset(self._open)

    def heal(self) -> None:
        """Let everything through again; connections that have lost bytes are reset."""
        self._fault = None
        self._reset(self._torn)

    def __exit__(self, *exc: object) -> None:
        self.heal()
        super().__exit__(*exc)

    def _opened(self, client: socket.socket, broker: socket.socket) -> None:
        fault = self._fault
        self._pair[client], self._pair[broker] = broker, client
        self._left[client] = self._left[broker] = [fault.bytes if fault else 0]
        if fault is not None and fault.kind == "reset":
            self._reset([client, broker])

    def _forward(self, data: bytes, source: socket.socket, sink: socket.socket, **_: bool) -> None:
        fault = self._fault
        if fault is None and source not in self._torn:
            sink.sendall(data)
        elif fault is not None and fault.kind == "latency":
            time.sleep(fault.delay.total_seconds())
            sink.sendall(data)
        elif fault is not None and fault.kind == "cut":
            self._cut(data, source, sink)
        else:
            self._torn.update((source, sink))

    def _cut(self, data: bytes, source: socket.socket, sink: socket.socket) -> None:
        left = self._left[source]
        passed = data[: max(0, left[0])]
        left[0] -= len(data)
        if passed:
            sink.sendall(passed)
        if left[0] < 0:
            self._reset([source, sink])

    def _reset(self, sockets: Iterable[socket.socket]) -> None:
        for each in list(sockets):
            with suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                # Wakes the thread that reads from it, without a word to the other side.
                each.shutdown(socket.SHUT_RD)
            each.close()


def _target(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    default = _DEFAULT_PORTS.get(parts.scheme.split("+", 1)[0], _AMQP_PORT)
    return parts.hostname or "127.0.0.1", parts.port or default


def _shut(each: socket.socket) -> None:
    # The other side may have closed it long ago.
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
