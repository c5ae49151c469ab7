"""The journal of a message's steps: what was done outside is recorded, so that a re-run does not repeat it.

A step is a record of its own in the store, held and completed like a message. It belongs to the piece of
work: to the key if the message has one, else to the message with all its attempts and redrives.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from typing import Any

from unlost.core.ids import MessageId
from unlost.core.settlement import AlreadyDone, Delivery, Limits, Run
from unlost.errors import ConfigurationError, LeaseLost
from unlost.idempotency.none import NoStore
from unlost.tasks.attempt import Attempt
from unlost.tasks.patience import while_store_is_down
from unlost.tasks.results import decode_result, encode_result
from unlost.tasks.runtime import Runtime

_NO_LIMITS = Limits(max_crashes=2**31, max_lost=2**31)


def checkpoint(runtime: Runtime, attempt: Attempt, name: str, act: Callable[[], Any]) -> Any:
    """Do a step, or return what it returned before; see :meth:`unlost.ReliableTask.checkpoint`."""
    if isinstance(attempt.ledger, NoStore):
        raise ConfigurationError(f"{attempt.message.task}: checkpoint() needs a store, and the app has none")
    step = step_of(attempt, name)
    delivery = Delivery(message=step, generation=attempt.row.generation, holder=attempt.row.holder or "")
    settings = runtime.settings
    admission = while_store_is_down(
        lambda: attempt.ledger.acquire(delivery, lease=settings.lease, limits=_NO_LIMITS),
        settings.settle_patience,
    )
    if isinstance(admission, AlreadyDone):
        return decode_result(runtime, admission.row.result)
    if not isinstance(admission, Run):
        raise LeaseLost(f"{attempt.message}: an earlier attempt is still at the step {name!r}")
    attempt.journalled = True
    result = encode_result(runtime, step, act())
    while_store_is_down(
        lambda: attempt.ledger.complete(step, admission.row, result), settings.settle_patience
    )
    return decode_result(runtime, result)


def step_of(attempt: Attempt, name: str) -> MessageId:
    """Return the identity of a step's record."""
    return MessageId(f"step:{name}", hashlib.sha256(_work(attempt).encode()).hexdigest())


def token_of(attempt: Attempt) -> str:
    """Return a token that is the same for all runs of a piece of work, and for no other."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"unlost:{_work(attempt)}"))


def _work(attempt: Attempt) -> str:
    return str(attempt.claim.key if attempt.claim else attempt.message)
