"""A Redis server: commands and scripts, each in one round trip, on connections that are kept."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from unlost.errors import ConfigurationError, StoreUnavailable

#: For a connection, and for an answer.
PATIENCE = timedelta(seconds=5)

#: Bytes that are read at a time.
_AT_ONCE = 64 * 1024


class Script:
    """A script, and the digest by which a server that has run it knows it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class RedisServer:
    """Runs scripts, each in one round trip; threads and greenlets may share it.

    Args:
        url: ``redis://...``, ``rediss://...`` or ``unix://...``; nothing is connected to yet.

    Raises:
        ConfigurationError: The client library is not installed, or the URL is none.
    """

    def __init__(self, url: str) -> None:
        try:
            import hiredis
            import redis
        except ModuleNotFoundError as exc:
            raise ConfigurationError(
                "a store in Redis needs redis and hiredis; one is not installed: pip install 'unlost[redis]'"
            ) from exc
        self._refused: type[Exception] = hiredis.ReplyError
        self._failures: tuple[type[Exception], ...] = (redis.RedisError, hiredis.HiredisError, OSError)
        seconds = PATIENCE.total_seconds()
        try:
            self._pool = redis.ConnectionPool.from_url(
                url, socket_timeout=seconds, socket_connect_timeout=seconds, decode_responses=True
            )
        except ValueError as exc:
            # Not repeated: it may hold a password.
            raise ConfigurationError("the store is no Redis URL: use redis://HOST:PORT/NUMBER") from exc
        self.shown = _without_password(self._pool.connection_kwargs)
        #: Connections that wait for a command: as many as were in use at the same time.
        self._idle: deque[_Line] = deque()
        _forget_after_fork(self)

    def run(self, script: Script, keys: tuple[str, ...], *arguments: Any) -> Any:
        """Run a script.

        Raises:
            StoreUnavailable: The server cannot be reached or refused; whether the script ran is unknown.
        """
        try:
            return self._send("EVALSHA", script.digest, len(keys), *keys, *arguments)
        except self._refused as exc:
            if not str(exc).startswith("NOSCRIPT"):
                raise self._failed(exc) from exc
        except self._failures as exc:
            raise self._failed(exc) from exc
        return self.call("EVAL", script.text, len(keys), *keys, *arguments)

    def call(self, *command: Any) -> Any:
        """Run a command; errors as :meth:`run`."""
        try:
            return self._send(*command)
        except self._failures as exc:
            raise self._failed(exc) from exc

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin so, a thousand a round trip; one may come twice.

        Args:
            prefix: Without wildcards.
        """
        cursor = "0"
        while True:
            cursor, keys = self.call("SCAN", cursor, "MATCH", prefix + "*", "COUNT", 1000)
            yield from keys
            if str(cursor) == "0":
                return

    def _failed(self, exc: Exception) -> StoreUnavailable:
        """Drop the lines that nobody uses, which may be as dead, and return what to raise."""
        self.close()
        return StoreUnavailable(f"the store failed: {exc}")

    def _send(self, *command: Any) -> Any:
        # Given back only after a whole answer. Whatever else ends the wait for it, a soft time limit for
        # instance, leaves the answer to come, and the next command would take it for its own.
        line = self._take() or self._connect()
        try:
            answer = line.ask(*command)
        except self._refused:
            self._idle.append(line)
            raise
        except BaseException:
            line.close()
            raise
        self._idle.append(line)
        return answer

    def _take(self) -> _Line | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _connect(self) -> _Line:
        # Not by the pool, which counts what it has made and is never given any back: it would refuse at last.
        return _Line(self._pool.connection_class(**self._pool.connection_kwargs))

    def close(self) -> None:
        """Drop the connections that are not in use; the next call makes another."""
        while (line := self._take()) is not None:
            line.close()

    def forget(self) -> None:
        """Leave the parent's connections alone: a child makes its own."""
        self._idle = deque()


class _Line:
    """A connection that the redis library has made and hiredis, its parser, speaks on alone.

    What the library does around each command (health checks, retries, relaxed timeouts) costs more than the
    command, and is none of it wanted here: a line that failed is dropped.

    Args:
        connection: Of the redis library, not connected.

    Raises:
        redis.RedisError, OSError: The server cannot be reached, or does not let us in.
    """

    def __init__(self, connection: Any) -> None:
        import hiredis

        # Closed with the line, also when a child lets go of its parent's (the library then closes the
        # descriptor and says nothing to the server).
        self._close = weakref.finalize(self, connection.disconnect)
        connection.connect()
        self._socket = connection._sock
        self._pack = hiredis.pack_command
        self._unasked = hiredis.PushNotification
        self._reader = hiredis.Reader(encoding="utf-8")

    def ask(self, *command: Any) -> Any:
        """Return the answer to a command.

        Raises:
            hiredis.HiredisError: The server refused, or spoke something else than Redis.
            OSError: It was not there, or did not answer in time; the line is of no more use.
        """
        self._socket.sendall(self._pack(command))
        while (answer := self._reader.gets()) is False or isinstance(answer, self._unasked):
            if answer is not False:
                continue
            received = self._socket.recv(_AT_ONCE)
            if not received:
                raise ConnectionError("the server closed the connection")
            self._reader.feed(received)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Drop it."""
        self._close()


def _without_password(place: Mapping[str, Any]) -> str:
    where = place.get("path") or f"{place.get('host')}:{place.get('port', 6379)}"
    return f"redis://{where}/{place.get('db') or 0}"


def _forget_after_fork(server: RedisServer) -> None:
    alive = weakref.ref(server)

    def forget() -> None:
        inherited = alive()
        if inherited is not None:
            inherited.forget()

    os.register_at_fork(after_in_child=forget)
