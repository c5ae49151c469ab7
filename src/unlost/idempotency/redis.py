"""The ledger in Redis: one string for each message, Lua for what must not be torn apart.

Acquire and complete are one round trip each on a connection that is held. The time is the server's
(``TIME``); a lease's expiry is stored, not a TTL, so that a record never vanishes by itself: absence would
pass for a message that nobody has seen. For the same reason the server must not evict
(``maxmemory-policy noeviction``) and must sync its log (``appendfsync always``, or accept that the last
second is lost with the machine).

A record is two numbers of a fixed width and a JSON list: when its lease expires and when it was changed, in
seconds of the server's clock, the second in whole ones, and the rest of the row. The list is sent as it is to
be stored, and usually compared as one text with what its writer last saw, so that the server takes nothing
apart.

All keys carry one hash tag, ``{unlost}``, so that a script finds them on one node of a cluster.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict
from datetime import timedelta
from functools import lru_cache

from unlost.core.headers import Failure
from unlost.core.ids import Generation
from unlost.core.settlement import ENDED, Row, State
from unlost.core.uniqueness import is_unique_record
from unlost.database.redis import RedisServer, Script
from unlost.idempotency.records import EVERYTHING, RecordStore

_PREFIX = "{unlost}:"
_HOLDERS = _PREFIX + "holder:"

#: Where a row's fields are in the list, from 1, as Lua counts; a generation is two.
_PLACES = {
    name: str(place)
    for place, name in enumerate(("state", "redrives", "attempt", "token", "holder", *Row._fields[5:]), 1)
} | {"generation": "2 3"}

_EXPIRES = "expires"

_encode = json.JSONEncoder(ensure_ascii=False).encode

#: An expiry, in Lua and in Python.
_WIDE = "017.6f"

_CLOCK = f"""
local time = redis.call('TIME')
local function after(seconds) return string.format('%{_WIDE}', time[1] + time[2] / 1000000 + seconds) end
"""

_PARTS = """
local function parts_of(record) return record:sub(1, 17), record:sub(19, 28), record:sub(30) end
"""

# KEYS: record, what the sets of a holder's records begin with. ARGV: lease, holder, list.
_INSERT = Script(
    _CLOCK
    + """
local expires = after(ARGV[1])
if not redis.call('SET', KEYS[1], expires .. ' ' .. time[1] .. ' ' .. ARGV[3], 'NX') then
  return {after(0), redis.call('GET', KEYS[1])}
end
if ARGV[2] ~= '' then redis.call('SADD', KEYS[2] .. ARGV[2], KEYS[1]) end
return expires
"""
)

# KEYS: as for _INSERT. ARGV: the list that is believed to be there, where in it the present one must be the
# same, what the expiry must be if that matters; the next list, where it is written, the next expiry if that
# is; the holders before and after, if belief is right.
_REPLACE = Script(
    _PARTS
    + """
local present = redis.call('GET', KEYS[1])
if not present then return 0 end
local expires, _, list = parts_of(present)
if ARGV[3] ~= '' and expires ~= ARGV[3] then return 0 end
local next, before, holder = ARGV[4], ARGV[7], ARGV[8]
if list ~= ARGV[1] then
  local found, believed, written = cjson.decode(list), cjson.decode(ARGV[1]), cjson.decode(next)
  local function holder_of(row) return row[5] ~= cjson.null and row[5] or '' end
  for place in ARGV[2]:gmatch('%d+') do
    place = tonumber(place)
    if found[place] ~= believed[place] then return 0 end
  end
  before = holder_of(found)
  for place in ARGV[5]:gmatch('%d+') do
    place = tonumber(place)
    found[place] = written[place]
  end
  next, holder = cjson.encode(found), holder_of(found)
end
if ARGV[6] ~= '' then expires = ARGV[6] end
redis.call('SET', KEYS[1], expires .. ' ' .. redis.call('TIME')[1] .. ' ' .. next)
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
  for _, name in ipairs(redis.call('SMEMBERS', KEYS[1] .. ARGV[i])) do
    local present = redis.call('GET', name)
    if present then redis.call('SET', name, expires .. present:sub(18)) end
  end
end
"""
)

# KEYS: what the sets of a holder's records begin with. ARGV: holder. A record that somebody has deleted by
# hand may have come again, with another holder.
_HELD = Script(
    """
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1] .. ARGV[1])) do
  local present = redis.call('GET', name)
  if present and cjson.decode(present:sub(30))[5] == ARGV[1] then return {name, present} end
  redis.call('SREM', KEYS[1] .. ARGV[1], name)
end
return false
"""
)

# KEYS: as for _INSERT. ARGV: seconds since it ended, whether to remove it, states. A lease must have expired.
_PURGE = Script(
    _CLOCK
    + _PARTS
    + """
local present = redis.call('GET', KEYS[1])
if not present then return 0 end
local expires, changed, list = parts_of(present)
if tonumber(changed) >= time[1] + time[2] / 1000000 - ARGV[1] or expires > after(0) then return 0 end
local row = cjson.decode(list)
for i = 3, #ARGV do
  if ARGV[i] == row[1] then
    if ARGV[2] == '1' then
      redis.call('DEL', KEYS[1])
      if row[5] ~= cjson.null then redis.call('SREM', KEYS[2] .. row[5], KEYS[1]) end
    end
    return 1
  end
end
return 0
"""
)

_READ = Script("return redis.call('GET', KEYS[1])")


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
        answer = self.server.run(_INSERT, keys, lease.total_seconds(), row.holder or "", _list_of(row))
        if isinstance(answer, list):
            now, found = answer
            return _row(found), float(now)
        return row._replace(expires=float(answer)), None

    def _replace(
        self,
        message: str,
        before: Row,
        same: tuple[str, ...],
        row: Row,
        writes: frozenset[str] = EVERYTHING,
    ) -> bool:
        answer = self.server.run(
            _REPLACE,
            (_PREFIX + message, _HOLDERS),
            _list_of(before),
            _places_of(same),
            _wide(before.expires) if _EXPIRES in same else "",
            _list_of(row),
            _places_of(writes),
            _wide(row.expires) if _EXPIRES in writes else "",
            before.holder or "",
            row.holder or "",
        )
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
        states = (*ENDED, State.LEASED) if is_unique_record(message) else ENDED
        keys, age = (_PREFIX + message, _HOLDERS), older_than.total_seconds()
        return bool(self.server.run(_PURGE, keys, age, int(remove), *states))

    def renew(self, holders: Collection[str], lease: timedelta) -> None:
        """Extend the leases of these holders at once."""
        if holders:
            self.server.run(_RENEW, (_HOLDERS,), lease.total_seconds(), *holders)

    def close(self) -> None:
        """Close the connections that are not in use."""
        self.server.close()


def _list_of(row: Row) -> str:
    """Return a row as JSON but for its expiry. The json module alone takes nearly twice as long."""
    state, (redrives, attempt), token, holder, _expires, decision, sent = row[:7]
    crashes, lost, due_ms, started_ms, result, failure = row[7:]
    # As text, in which a character that is none in UTF-8 stays escaped: Lua refuses such an escape.
    why = None if failure is None else json.dumps(asdict(failure))
    first = f'"{state}",{redrives},{attempt},{token},{_text(holder)},{_text(decision)}'
    counted = f"{str(sent).lower()},{crashes},{lost},{'null' if due_ms is None else due_ms},{started_ms}"
    return f"[{first},{counted},{_text(result)},{_text(why)}]"


def _text(value: str | None) -> str:
    return "null" if value is None else _encode(value)


@lru_cache(maxsize=8)
def _places_of(fields: Collection[str]) -> str:
    """Return where some of a row's fields are in the list."""
    return " ".join(_PLACES[name] for name in sorted(fields) if name != _EXPIRES)


def _row(record: str) -> Row:
    """Return the row that a record holds."""
    expires, _changed, text = record.split(" ", 2)
    state, redrives, attempt, token, holder, *others, why = json.loads(text)
    generation = Generation(redrives, attempt)
    failure = None if why is None else Failure(**json.loads(why))
    return Row._make((State(state), generation, token, holder, float(expires), *others, failure))


def _wide(expires: float) -> str:
    return f"{expires:{_WIDE}}"
