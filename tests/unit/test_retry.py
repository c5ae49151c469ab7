"""A retry policy decides across deliveries what tenacity would decide in process."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import (
    RetryError,
    Retrying,
    stop_after_attempt,
    stop_after_delay,
    stop_before_delay,
    stop_never,
    wait_chain,
    wait_exponential,
    wait_fixed,
    wait_incrementing,
)
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from unlost.core.retry import LONGEST_WAIT, ONCE, GiveUp, RetryPolicy, TryAgain
from unlost.errors import Permanent, RetryLater

#: Quarters of a second are exact in binary and in a timedelta, so equality at a limit is no accident.
QUARTERS = st.integers(0, 200).map(lambda quarters: quarters / 4)
MOST_ATTEMPTS = 12

WAITS = st.recursive(
    st.one_of(
        st.builds(wait_fixed, QUARTERS),
        st.builds(wait_exponential, QUARTERS, max=QUARTERS, min=QUARTERS),
        st.builds(wait_incrementing, QUARTERS, QUARTERS, QUARTERS),
    ),
    lambda waits: st.one_of(
        st.builds(lambda a, b: a + b, waits, waits),
        st.builds(lambda several: wait_chain(*several), st.lists(waits, min_size=1, max_size=3)),
    ),
    max_leaves=3,
)
STOPS = st.recursive(
    st.one_of(
        st.builds(stop_after_attempt, st.integers(1, 8)),
        st.builds(stop_after_delay, QUARTERS),
        st.builds(stop_before_delay, QUARTERS),
    ),
    lambda stops: st.one_of(
        st.builds(lambda a, b: a | b, stops, stops), st.builds(lambda a, b: a & b, stops, stops)
    ),
    max_leaves=4,
)


def in_process(wait: wait_base, stop: stop_base, lasts: list[float]) -> list[float]:
    """Return the sleeps of tenacity itself over attempts that last so long and all fail."""
    now, sleeps = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        now[0] += seconds

    def body() -> None:
        now[0] += lasts[len(sleeps)]
        raise OSError

    bounded = stop | stop_after_attempt(MOST_ATTEMPTS)
    with patch("time.monotonic", lambda: now[0]), pytest.raises(RetryError):
        Retrying(wait=wait, stop=bounded, sleep=sleep)(body)
    return sleeps


def across_deliveries(wait: wait_base, stop: stop_base, lasts: list[float]) -> list[float]:
    """Return the delays of a policy whose every attempt is another delivery."""
    policy = RetryPolicy(wait=wait, stop=stop | stop_after_attempt(MOST_ATTEMPTS))
    now, delays = 0.0, list[float]()
    for attempt, lasted in enumerate(lasts, start=1):
        now += lasted
        verdict = policy.decide(OSError(), attempt=attempt, since_start=timedelta(seconds=now))
        if isinstance(verdict, GiveUp):
            assert verdict == GiveUp("budget-spent")
            return delays
        delays.append(verdict.after.total_seconds())
        now += delays[-1]
    raise AssertionError("the policy went on beyond its last attempt")


@given(WAITS, STOPS, st.lists(QUARTERS, min_size=MOST_ATTEMPTS, max_size=MOST_ATTEMPTS))
def test_same_as_tenacity(wait: wait_base, stop: stop_base, lasts: list[float]) -> None:
    """For any strategies the delays and the end are those of tenacity in one process."""
    assert across_deliveries(wait, stop, lasts) == in_process(wait, stop, lasts)


def decide(policy: RetryPolicy, exception: BaseException, **more: Any) -> TryAgain | GiveUp:
    """Return what follows the first attempt."""
    return policy.decide(exception, attempt=1, since_start=timedelta(seconds=1), **more)


FIXED = RetryPolicy(wait=wait_fixed(4), stop=stop_after_attempt(3))
AGAIN = TryAgain(timedelta(seconds=4))


def test_only_what_is_named_is_tried_again() -> None:
    """An exception outside ``on`` is permanent; a subclass of one inside is not."""
    policy = RetryPolicy(wait=wait_fixed(4), on=(OSError,))

    assert decide(policy, ConnectionError()) == AGAIN
    assert decide(policy, ValueError()) == GiveUp("permanent")


def test_never_wins_over_on() -> None:
    """``never`` takes out what ``on`` names a base of, but not the base."""
    policy = RetryPolicy(wait=wait_fixed(4), on=(OSError,), never=(ConnectionError,))

    assert decide(policy, ConnectionResetError()) == GiveUp("permanent")
    assert decide(policy, TimeoutError()) == AGAIN


def test_always_adds_to_on_but_not_against_never() -> None:
    """What the framework tries again is tried unless the task forbids it."""
    policy = RetryPolicy(wait=wait_fixed(4), on=(OSError,), never=(KeyError,))

    assert decide(policy, ValueError(), always=(ValueError,)) == AGAIN
    assert decide(policy, KeyError(), always=(LookupError,)) == GiveUp("permanent")


def test_what_is_no_exception_is_not_tried_again() -> None:
    """By default a ``SystemExit`` of the body is not retryable."""
    assert decide(FIXED, SystemExit(1)) == GiveUp("permanent")


def test_permanent_is_permanent() -> None:
    """``Permanent`` is not retried even where ``on`` and ``always`` name it."""
    policy = RetryPolicy(wait=wait_fixed(4), on=(Permanent,))

    assert decide(policy, Permanent(), always=(Permanent,)) == GiveUp("permanent")


def test_retry_later_brings_its_own_delay() -> None:
    """``RetryLater(after=...)`` replaces the wait; without it the policy's wait holds."""
    assert decide(FIXED, RetryLater(after=timedelta(minutes=7))) == TryAgain(timedelta(minutes=7))
    assert decide(FIXED, RetryLater(after=timedelta(0))) == TryAgain(timedelta(0))
    assert decide(FIXED, RetryLater()) == AGAIN


def test_retry_later_is_retryable_whatever_the_policy_names() -> None:
    """The task asked for it, so neither ``on`` nor ``never`` has a say."""
    policy = RetryPolicy(wait=wait_fixed(4), on=(), never=(Exception,))

    assert decide(policy, RetryLater()) == AGAIN


def test_retry_later_is_bounded_by_stop() -> None:
    """Asking for later does not lengthen the budget, and its delay counts for ``stop_before_delay``."""
    policy = RetryPolicy(stop=stop_before_delay(60))

    assert decide(RetryPolicy(stop=ONCE), RetryLater(after=timedelta(0))) == GiveUp("budget-spent")
    assert decide(policy, RetryLater(after=timedelta(seconds=58))) == TryAgain(timedelta(seconds=58))
    assert decide(policy, RetryLater(after=timedelta(seconds=59))) == GiveUp("budget-spent")


@pytest.mark.parametrize("seconds", [2.0**80, float("inf"), float("nan")])
def test_a_wait_beyond_all_dates_is_cut(seconds: float) -> None:
    """An exponential wait without a maximum ends in a date, not in an overflow."""
    policy = RetryPolicy(wait=wait_fixed(0), stop=stop_never)
    object.__setattr__(policy, "wait", lambda _state: seconds)

    assert decide(policy, OSError()) == TryAgain(LONGEST_WAIT)
    assert decide(policy, RetryLater(after=timedelta.max)) == TryAgain(LONGEST_WAIT)
