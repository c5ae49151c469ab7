"""Immediate attempts inside a running body, for the cheap cases, counted in the message's one budget."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import Ignore, Reject, Retry
from tenacity import RetryCallState, Retrying, retry_if_exception
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from unlost.core.clock import epoch_ms
from unlost.core.retry import RetryPolicy, TryAgain
from unlost.errors import LeaseLost, RetryLater
from unlost.tasks.attempt import Attempt

#: What must leave the body at once: it says how the delivery ends.
_LEAVES = (Ignore, LeaseLost, Reject, Retry, RetryLater, SoftTimeLimitExceeded)


def since_start(attempt: Attempt) -> timedelta:
    """Return the time since the first attempt of this redrive started."""
    return timedelta(milliseconds=max(0, epoch_ms(datetime.now(UTC)) - attempt.row.started_ms))


def retrying(policy: RetryPolicy, attempt: Attempt, *, wait: wait_base, stop: stop_base) -> Retrying:
    """Return a tenacity controller whose further attempts count against the message's retry budget.

    What the policy would not try again, and what its budget no longer covers, leaves the loop as it is, so
    that the delivery ends by the same policy. A crash inside the loop loses the count of this delivery's
    attempts: they are in the ledger only when it ends.

    Args:
        policy: The task's.
        attempt: The running one; counts the attempts.
        wait: Seconds between two attempts, in process: the delivery is held and its lease renewed meanwhile.
        stop: When to stop trying in process, whatever is left of the budget.
    """

    def may_go_on(exception: BaseException) -> bool:
        if isinstance(exception, _LEAVES):
            return False
        verdict = policy.decide(exception, attempt=attempt.number, since_start=since_start(attempt))
        return isinstance(verdict, TryAgain)

    def count(_: RetryCallState) -> None:
        attempt.in_process += 1

    return Retrying(
        wait=wait, stop=stop, retry=retry_if_exception(may_go_on), before_sleep=count, reraise=True
    )
