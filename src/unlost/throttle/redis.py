"""The shared state of breakers and limits in Redis. All time is the server's.

The keys have a hash tag of their own, ``{unlost-throttle}``: they are none of the ledger's.
"""

from __future__ import annotations

from collections.abc import Iterator

from unlost.database.redis import RedisServer, Script
from unlost.throttle.documents import DocumentThrottle

_PREFIX = "{unlost-throttle}:"

# KEYS: document.
_GET = Script("return {redis.call('TIME'), redis.call('GET', KEYS[1])}")

# KEYS: document. ARGV: the present one, empty for none; the next.
_SWAP = Script(
    """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
)


class RedisThrottle(DocumentThrottle):
    """Circuits and limits of one Redis, from 6.2 on.

    All methods raise :class:`unlost.errors.StoreUnavailable` when it cannot be asked.

    Args:
        url: ``redis://...``, ``rediss://...`` or ``unix://...``.

    Raises:
        ConfigurationError: The client library is not installed, or the URL is none.
    """

    def __init__(self, url: str) -> None:
        self.server = RedisServer(url)

    def _get(self, key: str) -> tuple[str | None, float]:
        (seconds, micros), text = self.server.run(_GET, (_PREFIX + key,))
        return text, int(seconds) + int(micros) / 1e6

    def _swap(self, key: str, before: str | None, after: str) -> bool:
        return bool(self.server.run(_SWAP, (_PREFIX + key,), before or "", after))

    def _keys(self, prefix: str) -> Iterator[str]:
        for key in self.server.keys(_PREFIX + prefix):
            yield key.removeprefix(_PREFIX)
