"""Checks payloads in on their way to the broker, out in the worker, and sweeps what nobody needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from kombu.compression import decompress

from unlost.core.claims import Claim, body_of, checked_in, claim_of, is_claim, parse_key
from unlost.core.ids import MessageId
from unlost.core.message import Outgoing
from unlost.core.settlement import Row, State

if TYPE_CHECKING:
    from unlost.claims.stores import ClaimStore

logger = logging.getLogger(__name__)

#: Done for good: nobody asks for the payload again.
_OVER = (State.DONE, State.CANCELLED)


@dataclass(frozen=True, slots=True)
class ClaimCheck:
    """The claim check of an application.

    Attributes:
        store: Where payloads are kept.
        above: Bodies of more bytes than this are checked in.
        retention: How long at least, counted from when the message may run.
    """

    store: ClaimStore
    above: int
    retention: timedelta

    def check_in(self, message: Outgoing) -> Outgoing:
        """Return the message to publish: the same, or one that carries a claim.

        Raises:
            StoreUnavailable: The payload could not be stored; nothing was published.

        Crash safety:
            A crash before the publish leaves a payload that the sweep removes.
        """
        if len(message.body) <= self.above // 4 or is_claim(message):
            return message
        body = body_of(message)
        if len(body) <= self.above:
            return message
        claim = claim_of(message, datetime.now(UTC), self.retention)
        self.store.put(claim.key, body)
        return checked_in(message, claim, _unpacked(body, claim.compression), room=self.above)

    def fetch(self, claim: Claim) -> bytes:
        """Return a claim's payload.

        Raises:
            ClaimLost: It is gone, or is not what was stored.
            StoreUnavailable: The store did not answer.
        """
        return claim.check(self.store.get(claim.key))


def _unpacked(body: bytes, compression: str) -> bytes:
    """Return a body as its worker will see it; as it is, where that cannot be known here."""
    if not compression:
        return body
    try:
        unpacked: bytes = decompress(body, compression)
    except Exception:
        # Any codec's error, or one that only the worker has. Nobody is told then, should the payload be lost.
        logger.exception("a body compressed as %s cannot be read here", compression)
        return body
    return unpacked


def sweepable(
    store: ClaimStore, read: Callable[[MessageId], Row | None], now: datetime
) -> Iterator[tuple[str, MessageId]]:
    """Yield the payloads that nobody needs: past their retention, and not of a message that is under way.

    A message that waits, runs or is a dead letter keeps its payload however old it is: an operator may send
    it back. One that the ledger knows nothing of has never arrived, or is forgotten after its own retention.

    Args:
        store: Where payloads are.
        read: The ledger's row of a message.
        now: The present moment; aware.

    Raises:
        StoreUnavailable: A store did not answer.
    """
    today = now.astimezone(UTC).date()
    for key in store.iter_keys():
        parsed = parse_key(key)
        if parsed is None:
            continue
        until, message = parsed
        if until >= today:
            continue
        row = read(message)
        if row is None or row.state in _OVER:
            yield key, message
