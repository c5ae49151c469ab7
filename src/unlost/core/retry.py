"""When a failed attempt is tried again: tenacity's own strategies, asked across deliveries.

tenacity's ``wait_*`` and ``stop_*`` are functions of a ``RetryCallState``. In process, tenacity keeps
that state; here an attempt may run in another process a day later, so the state is built anew from what
the message carries. The strategies themselves are tenacity's; there is no second set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from tenacity import RetryCallState, Retrying, stop_after_attempt, wait_random_exponential
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from unlost.errors import Permanent, RetryLater

DEFAULT_WAIT = wait_random_exponential(multiplier=1, max=300)
DEFAULT_STOP = stop_after_attempt(8)
ONCE = stop_after_attempt(1)

#: An unbounded exponential wait soon exceeds what a date, or the delay path, can hold.
LONGEST_WAIT = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class TryAgain:
    """Run the message again after a delay."""

    after: timedelta


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Dead-letter the message.

    ``reason`` is ``permanent`` when retrying cannot help, ``budget-spent`` when it may not any more.
    """

    reason: str


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Which exceptions are tried again, how long after, and how often.

    Args:
        wait: A tenacity ``wait_*`` strategy; seconds before the next attempt, at most a year.
        stop: A tenacity ``stop_*`` strategy, or several joined by ``|`` and ``&``.
        on: Exceptions that are tried again.
        never: Exceptions that are not, even where ``on`` names a base of theirs.
    """

    wait: wait_base = field(default=DEFAULT_WAIT)
    stop: stop_base = field(default=DEFAULT_STOP)
    on: tuple[type[BaseException], ...] = (Exception,)
    never: tuple[type[BaseException], ...] = ()

    def decide(
        self,
        exception: BaseException,
        *,
        attempt: int,
        since_start: timedelta,
        always: tuple[type[BaseException], ...] = (),
    ) -> TryAgain | GiveUp:
        """Return what follows an attempt that raised.

        Args:
            exception: What the body raised.
            attempt: The number of the attempt that failed, from 1.
            since_start: Time since the first attempt of this redrive started.
            always: Exceptions that are tried again unless ``never`` names them.
        """
        if not self._is_retryable(exception, always):
            return GiveUp("permanent")
        state = _call_state(exception, attempt, since_start)
        after = self._delay(exception, state)
        # tenacity's own order: the wait is computed first, because stop_before_delay reads it.
        state.upcoming_sleep = after.total_seconds()
        if self.stop(state):
            return GiveUp("budget-spent")
        return TryAgain(after)

    def _is_retryable(self, exception: BaseException, always: tuple[type[BaseException], ...]) -> bool:
        if isinstance(exception, RetryLater):
            return True
        if isinstance(exception, (Permanent, *self.never)):
            return False
        return isinstance(exception, (*self.on, *always))

    def _delay(self, exception: BaseException, state: RetryCallState) -> timedelta:
        if isinstance(exception, RetryLater) and exception.after is not None:
            return min(LONGEST_WAIT, exception.after)
        return timedelta(seconds=min(LONGEST_WAIT.total_seconds(), float(self.wait(state))))


def _call_state(exception: BaseException, attempt: int, since_start: timedelta) -> RetryCallState:
    """Return the state that tenacity would have kept in process."""
    state = RetryCallState(retry_object=Retrying(), fn=None, args=(), kwargs={})
    state.attempt_number = attempt
    info: Any = (type(exception), exception, exception.__traceback__)
    state.set_exception(info)
    # seconds_since_start is outcome_timestamp - start_time.
    state.start_time = 0.0
    state.outcome_timestamp = since_start.total_seconds()
    return state
