"""When a failed attempt is tried again: tenacity's own strategies, asked across deliveries.

tenacity's ``wait_*`` and ``stop_*`` are functions of a ``RetryCallState``. In process, tenacity keeps
that state; here an attempt may run in another process a day later, so the state is built anew from what
the message carries. The strategies themselves are tenacity's; there is no second set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from tenacity import RetryCallState, Retrying, stop_after_attempt, wait_random_exponential
from tenacity.retry import retry_base
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from unlost.errors import ConfigurationError, Permanent, RetryLater

DEFAULT_WAIT = wait_random_exponential(multiplier=1, max=300)
DEFAULT_STOP = stop_after_attempt(8)
ONCE = stop_after_attempt(1)

#: An unbounded exponential wait soon exceeds what a date, or the delay path, can hold.
LONGEST_WAIT = timedelta(days=365)

ANY: tuple[type[BaseException], ...] = (Exception,)

#: A budget that has not ended after so many attempts is called unbounded.
FAR_ENOUGH = 1000

Case: TypeAlias = "tuple[type[BaseException] | tuple[type[BaseException], ...], RetryPolicy]"


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

    An exception with an attribute ``retry_after`` (seconds, a ``timedelta`` or an aware ``datetime``, as a
    ``Retry-After`` header has it) brings its own delay in place of ``wait``.

    Args:
        wait: A tenacity ``wait_*`` strategy; seconds before the next attempt, at most a year.
        stop: A tenacity ``stop_*`` strategy, or several joined by ``|`` and ``&``. Time is counted from the
            first start of this redrive, so that a backlog or a late redrive still has its budget.
        on: Exceptions that are tried again.
        never: Exceptions that are not, even where ``on`` names a base of theirs.
        retry: In place of ``on``: a tenacity ``retry_if_*`` predicate over the exception.
        cases: Pairs of an exception (or a tuple of them) and the policy that holds for it; the first that
            matches counts. The attempts before, whatever they failed of, count for all policies.

    Raises:
        ConfigurationError: ``on`` and ``retry`` are both given, or a case is no such pair.
    """

    wait: wait_base = field(default=DEFAULT_WAIT)
    stop: stop_base = field(default=DEFAULT_STOP)
    on: tuple[type[BaseException], ...] = ANY
    never: tuple[type[BaseException], ...] = ()
    retry: retry_base | None = None
    cases: tuple[Case, ...] = ()

    def __post_init__(self) -> None:
        if self.retry is not None and self.on is not ANY:
            raise ConfigurationError("RetryPolicy(retry=..., on=...): give one of them, not both")
        for case in self.cases:
            if not _is_case(case):
                raise ConfigurationError(
                    f"RetryPolicy(cases=...): {case!r} is no pair of an exception class, or a tuple of "
                    "them, and a RetryPolicy"
                )

    def decide(
        self,
        exception: BaseException,
        *,
        attempt: int,
        since_start: timedelta,
        always: tuple[type[BaseException], ...] = (),
        now: datetime | None = None,
    ) -> TryAgain | GiveUp:
        """Return what follows an attempt that raised.

        Args:
            exception: What the body raised.
            attempt: The number of the attempt that failed, from 1.
            since_start: Time since the first attempt of this redrive started.
            always: Exceptions that are tried again unless ``never`` names them.
            now: The present moment, aware; for exceptions that name one.
        """
        policy = self.policy_for(exception)
        state = _call_state(exception, attempt, since_start)
        if not policy._is_retryable(exception, state, always):
            return GiveUp("permanent")
        after = policy._delay(exception, state, now or datetime.now(UTC))
        # tenacity's own order: the wait is computed first, because stop_before_delay reads it.
        state.upcoming_sleep = after.total_seconds()
        if policy.stop(state):
            return GiveUp("budget-spent")
        return TryAgain(after)

    def policy_for(self, exception: BaseException) -> RetryPolicy:
        """Return the policy that holds for an exception: a case's, else this one."""
        return next((policy for kinds, policy in self.cases if isinstance(exception, kinds)), self)

    def attempts_left(self, *, attempt: int, since_start: timedelta) -> int | None:
        """Return how many more attempts the budget grants at this moment; ``None`` for no bound.

        Args:
            attempt: The number of the present attempt, from 1.
            since_start: Time since the first attempt of this redrive started.
        """
        for left in range(FAR_ENOUGH):
            if self.stop(_call_state(Exception(), attempt + left, since_start)):
                return left
        return None

    def _is_retryable(
        self, exception: BaseException, state: RetryCallState, always: tuple[type[BaseException], ...]
    ) -> bool:
        if isinstance(exception, RetryLater):
            return True
        if isinstance(exception, (Permanent, *self.never)):
            return False
        if isinstance(exception, always):
            return True
        return isinstance(exception, self.on) if self.retry is None else bool(self.retry(state))

    def _delay(self, exception: BaseException, state: RetryCallState, now: datetime) -> timedelta:
        own = exception.after if isinstance(exception, RetryLater) else _retry_after(exception, now)
        if own is not None:
            return min(LONGEST_WAIT, own)
        return timedelta(seconds=min(LONGEST_WAIT.total_seconds(), float(self.wait(state))))


def _is_case(case: object) -> bool:
    if not isinstance(case, tuple) or len(case) != 2:
        return False
    kinds, policy = case
    classes = kinds if isinstance(kinds, tuple) else (kinds,)
    return isinstance(policy, RetryPolicy) and all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in classes
    )


def _retry_after(exception: BaseException, now: datetime) -> timedelta | None:
    """Return the delay that an exception asks for, if it is one."""
    asked = getattr(exception, "retry_after", None)
    if isinstance(asked, datetime) and asked.tzinfo is not None:
        return max(timedelta(0), asked - now)
    if isinstance(asked, int | float) and not isinstance(asked, bool) and math.isfinite(asked):
        asked = timedelta(seconds=min(float(asked), LONGEST_WAIT.total_seconds()))
    return asked if isinstance(asked, timedelta) and asked >= timedelta(0) else None


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
