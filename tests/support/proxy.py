"""TCP proxies between a client and a broker that do what networks do: fall silent, delay, break."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit, urlunsplit


class Proxy:
    """Passes connections on to the broker of a URL; subclasses decide what becomes of the bytes."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 5672)
        self._server = socket.create_server(("127.0.0.1", 0))
        place = f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{self._server.getsockname()[1]}"
        self.url = urlunsplit(parts._replace(netloc=place))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
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
            try:
                broker = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            self._open += [client, broker]
            self._opened(client, broker)
            for source, sink in ((client, broker), (broker, client)):
                thread = threading.Thread(target=self._pass_on, args=(source, sink, source is broker))
                self._threads.append(thread)
                thread.start()

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


class SwitchProxy(Proxy):
    """Passes everything on, until it is told to cut what is open or to let nobody in."""

    def __init__(self, url: str) -> None:
        self._admits = True
        super().__init__(url)

    def cut(self) -> None:
        """End all connections that are open now, on both sides."""
        for each in [*self._open]:
            _shut(each)

    def refuse(self) -> None:
        """Cut, and end every new connection at once, as a broker that is down does."""
        self._admits = False
        self.cut()

    def admit(self) -> None:
        """Let connections through again."""
        self._admits = True

    def _opened(self, client: socket.socket, broker: socket.socket) -> None:
        if not self._admits:
            _shut(client)
            _shut(broker)

    def _forward(self, data: bytes, source: socket.socket, sink: socket.socket, **_: bool) -> None:  # noqa: ARG002
        sink.sendall(data)


def _shut(each: socket.socket) -> None:
    # The other side may have closed it long ago.
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
