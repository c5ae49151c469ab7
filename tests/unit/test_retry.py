"""A retry policy decides across deliveries what tenacity would decide in process."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import (
    RetryError,
    Retrying,
    retry_if_exception_message,
    retry_if_exception_type,
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
from unlost.errors import ConfigurationError, Permanent, RetryLater

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


#: How an attempt ends: it succeeds, or raises what is tried again, or what is not.
OUTCOMES = st.lists(
    st.tuples(QUARTERS, st.sampled_from([OSError, OSError, OSError, ConnectionError, KeyError, None])),
    min_size=MOST_ATTEMPTS,
    max_size=MOST_ATTEMPTS,
)
Outcomes = list[tuple[float, type[Exception] | None]]


def in_process(wait: wait_base, stop: stop_base, outcomes: Outcomes) -> tuple[int, list[float], str]:
    """Return attempts, sleeps and end of tenacity itself over attempts that last so long and end so."""
    now, sleeps, attempts = [0.0], list[float](), [0]

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        now[0] += seconds

    def body() -> None:
        lasted, raised = outcomes[attempts[0]]
        attempts[0] += 1
        now[0] += lasted
        if raised is not None:
            raise raised

    bounded = stop | stop_after_attempt(MOST_ATTEMPTS)
    retrying = Retrying(wait=wait, stop=bounded, retry=retry_if_exception_type(OSError), sleep=sleep)
    end = "done"
    with patch("time.monotonic", lambda: now[0]):
        try:
            retrying(body)
        except RetryError:
            end = "budget-spent"
        except KeyError:
            end = "permanent"
    return attempts[0], sleeps, end


def across_deliveries(wait: wait_base, stop: stop_base, outcomes: Outcomes) -> tuple[int, list[float], str]:
    """Return the same of a policy whose every attempt is another delivery."""
    policy = RetryPolicy(wait=wait, stop=stop | stop_after_attempt(MOST_ATTEMPTS), on=(OSError,))
    now, delays = 0.0, list[float]()
    for attempt, (lasted, raised) in enumerate(outcomes, start=1):
        now += lasted
        if raised is None:
            return attempt, delays, "done"
        verdict = policy.decide(raised(), attempt=attempt, since_start=timedelta(seconds=now))
        if isinstance(verdict, GiveUp):
            return attempt, delays, verdict.reason
        delays.append(verdict.after.total_seconds())
        now += delays[-1]
    raise AssertionError("the policy went on beyond its last attempt")


@given(WAITS, STOPS, OUTCOMES)
def test_same_as_tenacity(wait: wait_base, stop: stop_base, outcomes: Outcomes) -> None:
    """For any strategies and outcomes, attempts, delays and end are those of tenacity in one process."""
    assert across_deliveries(wait, stop, outcomes) == in_process(wait, stop, outcomes)


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


def test_an_exception_brings_its_own_delay() -> None:
    """``retry_after`` on the exception replaces the wait: seconds, a timedelta, or a moment."""
    assert decide(FIXED, _asking_for(30)) == TryAgain(timedelta(seconds=30))
    assert decide(FIXED, _asking_for(2.5)) == TryAgain(timedelta(seconds=2.5))
    assert decide(FIXED, _asking_for(timedelta(minutes=2))) == TryAgain(timedelta(minutes=2))
    assert decide(FIXED, _asking_for(NOW + timedelta(seconds=9)), now=NOW) == TryAgain(timedelta(seconds=9))
    assert decide(FIXED, _asking_for(NOW - timedelta(seconds=9)), now=NOW) == TryAgain(timedelta(0))


@pytest.mark.parametrize("asked", [None, "soon", -1, float("nan"), True])
def test_a_retry_after_that_is_no_delay_is_passed_over(asked: object) -> None:
    """What cannot be read leaves the wait to the policy."""
    assert decide(FIXED, _asking_for(asked)) == AGAIN


def test_retry_after_does_not_make_an_exception_retryable_nor_lengthen_the_budget() -> None:
    """It says when, not whether."""
    assert decide(RetryPolicy(on=(KeyError,)), _asking_for(1)) == GiveUp("permanent")
    assert decide(RetryPolicy(stop=ONCE), _asking_for(1)) == GiveUp("budget-spent")


def test_cases_give_an_exception_a_policy_of_its_own() -> None:
    """The first case whose exception matches decides, also about whether it is tried at all."""
    policy = RetryPolicy(
        wait=wait_fixed(4),
        stop=stop_after_attempt(9),
        cases=(
            (ConnectionError, RetryPolicy(wait=wait_fixed(60), stop=stop_after_attempt(2))),
            ((ValueError, TypeError), RetryPolicy(on=())),
        ),
    )
    assert decide(policy, ConnectionResetError()) == TryAgain(timedelta(minutes=1))
    assert policy.decide(ConnectionResetError(), attempt=2, since_start=timedelta(0)) == GiveUp(
        "budget-spent"
    )
    assert decide(policy, TypeError()) == GiveUp("permanent")
    assert decide(policy, KeyError()) == AGAIN


def test_a_tenacity_predicate_decides_what_is_tried() -> None:
    """``retry`` is any tenacity ``retry_if_*`` over the exception, in place of ``on``."""
    policy = RetryPolicy(
        wait=wait_fixed(4), retry=retry_if_exception_message(match="busy") | retry_if_exception_type(KeyError)
    )
    assert decide(policy, OSError("busy")) == AGAIN
    assert decide(policy, KeyError()) == AGAIN
    assert decide(policy, OSError("gone")) == GiveUp("permanent")


def test_a_predicate_beside_on_is_refused() -> None:
    """Two ways to say the same must not contradict each other."""
    with pytest.raises(ConfigurationError, match=r"retry=.*on="):
        RetryPolicy(on=(OSError,), retry=retry_if_exception_type(KeyError))


def test_a_case_that_is_no_pair_of_exceptions_and_policy_is_refused() -> None:
    """A mistake in the declaration shows when it is made, not at the first failure."""
    with pytest.raises(ConfigurationError, match="cases"):
        RetryPolicy(cases=((OSError, wait_fixed(3)),))  # type: ignore[arg-type]


@given(STOPS, st.integers(1, 10), QUARTERS)
def test_attempts_left_is_how_often_the_policy_would_go_on(
    stop: stop_base, attempt: int, since: float
) -> None:
    """Without time passing, exactly so many failures are tried again before it gives up."""
    policy = RetryPolicy(wait=wait_fixed(0), stop=stop | stop_after_attempt(MOST_ATTEMPTS))
    since_start = timedelta(seconds=since)
    left = policy.attempts_left(attempt=attempt, since_start=since_start)
    granted = 0
    while isinstance(policy.decide(OSError(), attempt=attempt + granted, since_start=since_start), TryAgain):
        granted += 1
    assert left == granted


def test_attempts_without_a_bound_are_none() -> None:
    """``None`` means no bound."""
    assert RetryPolicy(stop=stop_never).attempts_left(attempt=1, since_start=timedelta(0)) is None


NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _asking_for(delay: object) -> Exception:
    exception = OSError()
    exception.retry_after = delay  # type: ignore[attr-defined]
    return exception
