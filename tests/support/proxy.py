"""A TCP proxy that stops passing on what a broker answers."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit, urlunsplit


class MuteProxy:
    """Passes connections on to the broker of a URL, and mutes those that are open on demand."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 5672)
        self._server = socket.create_server(("127.0.0.1", 0))
        place = f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{self._server.getsockname()[1]}"
        self.url = urlunsplit(parts._replace(netloc=place))
        self._muted: set[socket.socket] = set()
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

    def mute(self) -> None:
        """Drop all answers on the connections that are open now, for good; later ones are whole."""
        self._muted.update(self._open)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            broker = socket.create_connection(self._target)
            self._open += [client, broker]
            for source, sink in ((client, broker), (broker, client)):
                thread = threading.Thread(target=self._pass_on, args=(source, sink, source is broker))
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        # An error on either side ends the connection, as its close does.
        with suppress(OSError):
            while data := source.recv(65536):
                if not (answers and source in self._muted):
                    sink.sendall(data)
        _shut(sink)


def _shut(each: socket.socket) -> None:
    # The other side may have closed it long ago.
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
