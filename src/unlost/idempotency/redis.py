"""The ledger in Redis: one hash for each message, Lua for what must not be torn apart.

Acquire and complete are one round trip each on a connection that is held. The time is the server's
(``TIME``); a lease's expiry is a field, not a TTL, so that a record never vanishes by itself: absence would
pass for a message that nobody has seen. For the same reason the server must not evict
(``maxmemory-policy noeviction``) and must sync its log (``appendfsync always``, or accept that the last
second is lost with the machine).

All keys carry one hash tag, ``{unlost}``, so that a script finds them on one node of a cluster.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

from unlost.core.headers import Failure
from unlost.core.ids import Generation
from unlost.core.settlement import ENDED, Row, State
from unlost.core.uniqueness import is_unique_record
from unlost.errors import ConfigurationError, StoreUnavailable
from unlost.idempotency.records import RecordStore

#: For a connection, and for an answer.
PATIENCE = timedelta(seconds=5)

_PREFIX = "{unlost}:"
_HOLDERS = _PREFIX + "holder:"


class _Script:
    """A script, and the digest by which a server that has run it knows it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


_CLOCK = """
local time = redis.call('TIME')
local function after(seconds) return string.format('%.6f', time[1] + time[2] / 1000000 + seconds) end
local function stamp() return string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)) end
"""

# KEYS: record, what the sets of a holder's records begin with. ARGV: lease, holder, then field, value, ...
_INSERT = _Script(
    _CLOCK
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then return {after(0), redis.call('HGETALL', KEYS[1])} end
local expires = after(ARGV[1])
redis.call('HSET', KEYS[1], 'expires', expires, 'updated_ms', stamp(), unpack(ARGV, 3))
if ARGV[2] ~= '' then redis.call('SADD', KEYS[2] .. ARGV[2], KEYS[1]) end
return expires
"""
)

# KEYS: as above. ARGV: number of expected fields, their names, their values; holder, then field, value, ...
_REPLACE = _Script(
    _CLOCK
    + """
local count = tonumber(ARGV[1])
local present = redis.call('HMGET', KEYS[1], 'holder', unpack(ARGV, 2, count + 1))
for i = 1, count do
  if present[i + 1] ~= ARGV[count + 1 + i] then return 0 end
end
local before, holder = present[1], ARGV[2 * count + 2]
redis.call('HSET', KEYS[1], 'updated_ms', stamp(), 'holder', holder, unpack(ARGV, 2 * count + 3))
if before ~= holder then
  if before ~= '' then redis.call('SREM', KEYS[2] .. before, KEYS[1]) end
  if holder ~= '' then redis.call('SADD', KEYS[2] .. holder, KEYS[1]) end
end
return 1
"""
)

# KEYS: what the sets of a holder's records begin with. ARGV: lease, holder, ...
_RENEW = _Script(
    _CLOCK
    + """
local expires = after(ARGV[1])
for i = 2, #ARGV do
  for _, record in ipairs(redis.call('SMEMBERS', KEYS[1] .. ARGV[i])) do
    redis.call('HSET', record, 'expires', expires)
  end
end
"""
)

# KEYS: what the sets of a holder's records begin with. ARGV: holder.
_HELD = _Script(
    """
local record = redis.call('SRANDMEMBER', KEYS[1] .. ARGV[1])
if not record then return false end
return {record, redis.call('HGETALL', record)}
"""
)

# KEYS: record. ARGV: milliseconds since it ended, whether to remove it, states. A lease must have expired.
_PURGE = _Script(
    _CLOCK
    + """
local state, updated, expires = unpack(redis.call('HMGET', KEYS[1], 'state', 'updated_ms', 'expires'))
if not state or tonumber(updated) >= tonumber(stamp()) - tonumber(ARGV[1]) then return 0 end
if tonumber(expires) > tonumber(after(0)) then return 0 end
for i = 3, #ARGV do
  if ARGV[i] == state then
    if ARGV[2] == '1' then redis.call('DEL', KEYS[1]) end
    return 1
  end
end
return 0
"""
)

_READ = _Script("return redis.call('HGETALL', KEYS[1])")


class RedisStore(RecordStore):
    """A ledger in Redis from 6.2 on.

    Args:
        url: ``redis://...``, ``rediss://...`` or ``unix://...``.

    Raises:
        ConfigurationError: The client library is not installed, or the URL is none.
    """

    def __init__(self, url: str) -> None:
        self._server = _Server(url)

    def __repr__(self) -> str:
        return f"RedisStore({self._server.shown!r})"

    def _insert(self, message: str, row: Row, lease: timedelta) -> tuple[Row, float | None]:
        fields = _fields(row)
        del fields["expires"]
        keys = (_PREFIX + message, _HOLDERS)
        answer = self._server.run(_INSERT, keys, lease.total_seconds(), row.holder or "", *_flat(fields))
        if isinstance(answer, list):
            now, found = answer
            return _row(found), float(now)
        return replace(row, expires=float(answer)), None

    def _replace(self, message: str, expected: Mapping[str, Any], row: Row, *, counts: bool = True) -> bool:
        fields = _fields(row)
        holder = fields.pop("holder")
        if not counts:
            del fields["crashes"], fields["lost"]
        values = [_text(value) for value in expected.values()]
        arguments = (len(values), *expected, *values, holder, *_flat(fields))
        return bool(self._server.run(_REPLACE, (_PREFIX + message, _HOLDERS), *arguments))

    def _held_by(self, holder: str) -> tuple[str, Row] | None:
        answer = self._server.run(_HELD, (_HOLDERS,), holder)
        if not answer:
            return None
        record, found = answer
        return str(record).removeprefix(_PREFIX), _row(found)

    def _find(self, message: str) -> Row | None:
        found = self._server.run(_READ, (_PREFIX + message,))
        return _row(found) if found else None

    def _names(self) -> Iterator[str]:
        cursor = "0"
        while True:
            cursor, keys = self._server.call("SCAN", cursor, "MATCH", _PREFIX + "*", "COUNT", 1000)
            for key in keys:
                if not key.startswith(_HOLDERS):
                    yield key.removeprefix(_PREFIX)
            if str(cursor) == "0":
                return

    def _is_old(self, message: str, older_than: timedelta) -> bool:
        return self._purge(message, older_than, remove=False)

    def _remove(self, message: str, older_than: timedelta) -> bool:
        return self._purge(message, older_than, remove=True)

    def _purge(self, message: str, older_than: timedelta, *, remove: bool) -> bool:
        since = int(older_than.total_seconds() * 1000)
        states = (*ENDED, State.LEASED) if is_unique_record(message) else ENDED
        return bool(self._server.run(_PURGE, (_PREFIX + message,), since, int(remove), *states))

    def renew(self, holders: Collection[str], lease: timedelta) -> None:
        """Extend the leases of these holders at once."""
        if holders:
            self._server.run(_RENEW, (_HOLDERS,), lease.total_seconds(), *holders)

    def close(self) -> None:
        """Close this thread's connection."""
        self._server.close()


class _Server:
    """Runs scripts, each in one round trip, on a connection that each thread holds."""

    def __init__(self, url: str) -> None:
        try:
            import redis
        except ModuleNotFoundError as exc:
            raise ConfigurationError(
                "a store in Redis needs redis, which is not installed: pip install 'unlost[redis]'"
            ) from exc
        self._failures: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        self._no_script = redis.exceptions.NoScriptError
        seconds = PATIENCE.total_seconds()
        try:
            self._pool = redis.ConnectionPool.from_url(
                url, socket_timeout=seconds, socket_connect_timeout=seconds, decode_responses=True
            )
        except ValueError as exc:
            # Not repeated: it may hold a password.
            raise ConfigurationError("the store is no Redis URL: use redis://HOST:PORT/NUMBER") from exc
        self.shown = _without_password(self._pool.connection_kwargs)
        self._held = threading.local()
        _forget_after_fork(self)

    def run(self, script: _Script, keys: tuple[str, ...], *arguments: Any) -> Any:
        """Run a script.

        Raises:
            StoreUnavailable: The server cannot be reached or refused; whether the script ran is unknown.
        """
        with self._errors():
            try:
                return self._send("EVALSHA", script.digest, len(keys), *keys, *arguments)
            except self._no_script:
                return self._send("EVAL", script.text, len(keys), *keys, *arguments)

    def call(self, *command: Any) -> Any:
        """Run a command; errors as :meth:`run`."""
        with self._errors():
            return self._send(*command)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._failures as exc:
            self.close()
            raise StoreUnavailable(f"the store failed: {exc}") from exc

    def _send(self, *command: Any) -> Any:
        connection = getattr(self._held, "connection", None)
        if connection is None:
            connection = self._held.connection = self._pool.make_connection()
            connection.connect()  # type: ignore[no-untyped-call]
        connection.send_command(*command)
        return connection.read_response()

    def close(self) -> None:
        """Drop this thread's connection; the next call makes another."""
        connection = getattr(self._held, "connection", None)
        self._held.connection = None
        if connection is not None:
            connection.disconnect()

    def forget(self) -> None:
        """Leave the parent's connections alone: a child makes its own."""
        self._held = threading.local()


def _without_password(place: Mapping[str, Any]) -> str:
    where = place.get("path") or f"{place.get('host')}:{place.get('port', 6379)}"
    return f"redis://{where}/{place.get('db') or 0}"


def _forget_after_fork(server: _Server) -> None:
    alive = weakref.ref(server)

    def forget() -> None:
        inherited = alive()
        if inherited is not None:
            inherited.forget()

    os.register_at_fork(after_in_child=forget)


def _fields(row: Row) -> dict[str, str]:
    """Return a row as the hash's fields."""
    redrives, attempt = row.generation
    fields = {
        "state": row.state,
        "redrives": redrives,
        "attempt": attempt,
        "token": row.token,
        "holder": row.holder,
        "expires": row.expires,
        "decision": row.decision,
        "sent": row.sent,
        "crashes": row.crashes,
        "lost": row.lost,
        "due_ms": row.due_ms,
        "started_ms": row.started_ms,
        "result": row.result,
        "failure": json.dumps(asdict(row.failure)) if row.failure else None,
    }
    return {name: _text(value) for name, value in fields.items()}


def _text(value: Any) -> str:
    """Return a field's text; nothing is the empty text, and no JSON text is empty."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return f"{value:.6f}"
    return str(value)


def _flat(fields: Mapping[str, str]) -> list[str]:
    return [part for field in fields.items() for part in field]


def _row(flat: Any) -> Row:
    """Return the row that HGETALL's answer holds."""
    fields: dict[str, str] = dict(zip(flat[::2], flat[1::2], strict=True)) if isinstance(flat, list) else flat
    return Row(
        state=State(fields["state"]),
        generation=Generation(int(fields["redrives"]), int(fields["attempt"])),
        token=int(fields["token"]),
        holder=fields["holder"] or None,
        expires=float(fields["expires"]),
        decision=fields["decision"] or None,
        sent=fields["sent"] == "1",
        crashes=int(fields["crashes"]),
        lost=int(fields["lost"]),
        due_ms=int(fields["due_ms"]) if fields["due_ms"] else None,
        started_ms=int(fields["started_ms"]),
        result=fields["result"] or None,
        failure=Failure(**json.loads(fields["failure"])) if fields["failure"] else None,
    )
