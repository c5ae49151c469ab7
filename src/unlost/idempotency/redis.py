"""The ledger in Redis: one hash for each message, Lua for what must not be torn apart.

Acquire and complete are one round trip each on a connection that is held. The time is the server's
(``TIME``); a lease's expiry is a field, not a TTL, so that a record never vanishes by itself: absence would
pass for a message that nobody has seen. For the same reason the server must not evict
(``maxmemory-policy noeviction``) and must sync its log (``appendfsync always``, or accept that the last
second is lost with the machine).

A field that is missing or empty stands for zero or nothing, so a new record is written without such: what is
sent, stored and read again at every delivery is most of what the store costs.

All keys carry one hash tag, ``{unlost}``, so that a script finds them on one node of a cluster.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from datetime import timedelta
from functools import lru_cache, partial
from typing import Any

from unlost.core.headers import Failure
from unlost.core.ids import Generation
from unlost.core.settlement import ENDED, Row, State
from unlost.core.uniqueness import is_unique_record
from unlost.database.redis import RedisServer, Script
from unlost.idempotency.records import EVERYTHING, RecordStore

_PREFIX = "{unlost}:"
_HOLDERS = _PREFIX + "holder:"

_HOLDER = frozenset({"holder"})
#: What a new record has beside its expiry, which is the server's to say.
_AT_FIRST = EVERYTHING - {"expires"}
#: How a row's fields are named in the hash, in a row's order; the generation is two.
_NAMES = ("state", "redrives", "attempt", *Row._fields[2:])

_CLOCK = """
local time = redis.call('TIME')
local function after(seconds) return string.format('%.6f', time[1] + time[2] / 1000000 + seconds) end
local function stamp() return string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)) end
"""

# KEYS: record, what the sets of a holder's records begin with. ARGV: lease, holder, then field, value, ...
_INSERT = Script(
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
_REPLACE = Script(
    _CLOCK
    + """
local count = tonumber(ARGV[1])
local present = redis.call('HMGET', KEYS[1], 'holder', unpack(ARGV, 2, count + 1))
for i = 1, count do
  if (present[i + 1] or '') ~= ARGV[count + 1 + i] then return 0 end
end
local before, holder = present[1] or '', ARGV[2 * count + 2]
redis.call('HSET', KEYS[1], 'updated_ms', stamp(), 'holder', holder, unpack(ARGV, 2 * count + 3))
if before ~= holder then
  if before ~= '' then redis.call('SREM', KEYS[2] .. before, KEYS[1]) end
  if holder ~= '' then redis.call('SADD', KEYS[2] .. holder, KEYS[1]) end
end
return 1
"""
)

# KEYS: what the sets of a holder's records begin with. ARGV: lease, holder, ...
_RENEW = Script(
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
_HELD = Script(
    """
local record = redis.call('SRANDMEMBER', KEYS[1] .. ARGV[1])
if not record then return false end
return {record, redis.call('HGETALL', record)}
"""
)

# KEYS: record. ARGV: milliseconds since it ended, whether to remove it, states. A lease must have expired.
_PURGE = Script(
    _CLOCK
    + """
local state, updated, expires = unpack(redis.call('HMGET', KEYS[1], 'state', 'updated_ms', 'expires'))
if not state or tonumber(updated) >= tonumber(stamp()) - tonumber(ARGV[1]) then return 0 end
if (tonumber(expires) or 0) > tonumber(after(0)) then return 0 end
for i = 3, #ARGV do
  if ARGV[i] == state then
    if ARGV[2] == '1' then redis.call('DEL', KEYS[1]) end
    return 1
  end
end
return 0
"""
)

_READ = Script("return redis.call('HGETALL', KEYS[1])")


class RedisStore(RecordStore):
    """A ledger in Redis from 6.2 on.

    Args:
        url: ``redis://...``, ``rediss://...`` or ``unix://...``.

    Raises:
        ConfigurationError: The client library is not installed, or the URL is none.
    """

    def __init__(self, url: str) -> None:
        self.server = RedisServer(url)

    def __repr__(self) -> str:
        return f"RedisStore({self.server.shown!r})"

    def _insert(self, message: str, row: Row, lease: timedelta) -> tuple[Row, float | None]:
        keys = (_PREFIX + message, _HOLDERS)
        fields = _fields_of(row, _AT_FIRST, sparse=True)
        answer = self.server.run(_INSERT, keys, lease.total_seconds(), row.holder or "", *fields)
        if isinstance(answer, list):
            now, found = answer
            return _row(found), float(now)
        return row._replace(expires=float(answer)), None

    def _replace(
        self, message: str, expected: Mapping[str, Any], row: Row, writes: frozenset[str] = EVERYTHING
    ) -> bool:
        values = [_text(value) for value in expected.values()]
        fields = _fields_of(row, writes - _HOLDER, sparse=False)
        keys = (_PREFIX + message, _HOLDERS)
        answer = self.server.run(_REPLACE, keys, len(values), *expected, *values, row.holder or "", *fields)
        return bool(answer)

    def _held_by(self, holder: str) -> tuple[str, Row] | None:
        answer = self.server.run(_HELD, (_HOLDERS,), holder)
        if not answer:
            return None
        record, found = answer
        return str(record).removeprefix(_PREFIX), _row(found)

    def _find(self, message: str) -> Row | None:
        found = self.server.run(_READ, (_PREFIX + message,))
        return _row(found) if found else None

    def _names(self) -> Iterator[str]:
        for key in self.server.keys(_PREFIX):
            if not key.startswith(_HOLDERS):
                yield key.removeprefix(_PREFIX)

    def _is_old(self, message: str, older_than: timedelta) -> bool:
        return self._purge(message, older_than, remove=False)

    def _remove(self, message: str, older_than: timedelta) -> bool:
        return self._purge(message, older_than, remove=True)

    def _purge(self, message: str, older_than: timedelta, *, remove: bool) -> bool:
        since = int(older_than.total_seconds() * 1000)
        states = (*ENDED, State.LEASED) if is_unique_record(message) else ENDED
        return bool(self.server.run(_PURGE, (_PREFIX + message,), since, int(remove), *states))

    def renew(self, holders: Collection[str], lease: timedelta) -> None:
        """Extend the leases of these holders at once."""
        if holders:
            self.server.run(_RENEW, (_HOLDERS,), lease.total_seconds(), *holders)

    def close(self) -> None:
        """Close the connections that are not in use."""
        self.server.close()


def _fields_of(row: Row, fields: frozenset[str], *, sparse: bool) -> list[str]:
    """Return fields of the hash and their values, in turns; nothing and zero are empty text, or left out."""
    parts: list[str] = []
    state, generation, *others = row
    values = (state, *generation, *others)
    for name, place in _places(fields):
        value = values[place]
        if value or not sparse:
            parts += name, _text(value)
    return parts


@lru_cache(maxsize=8)
def _places(fields: frozenset[str]) -> tuple[tuple[str, int], ...]:
    """Return how some of a row's fields are named in the hash, and where each stands in it."""
    named = fields | {"redrives", "attempt"} if "generation" in fields else fields
    return tuple((name, place) for place, name in enumerate(_NAMES) if name in named)


def _text(value: Any) -> str:
    """Return a field's text; no JSON text is empty."""
    if not value:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Failure):
        return json.dumps(asdict(value))
    return "1" if value is True else f"{value:.6f}" if isinstance(value, float) else str(value)


def _row(flat: Any) -> Row:
    """Return the row that HGETALL's answer holds; what is missing, empty or zero says the same."""
    pairs = zip(flat[::2], flat[1::2], strict=True) if isinstance(flat, list) else flat.items()
    fields: dict[str, str] = {name: text for name, text in pairs if text}
    number = partial(_number, fields)
    return Row(
        state=State(fields["state"]),
        generation=Generation(number("redrives"), number("attempt")),
        token=number("token"),
        holder=fields.get("holder"),
        expires=float(fields.get("expires", 0)),
        decision=fields.get("decision"),
        sent=number("sent") == 1,
        crashes=number("crashes"),
        lost=number("lost"),
        due_ms=number("due_ms") or None,
        started_ms=number("started_ms"),
        result=fields.get("result"),
        failure=Failure(**json.loads(fields["failure"])) if "failure" in fields else None,
    )


def _number(fields: Mapping[str, str], name: str) -> int:
    return int(fields.get(name, 0))
