"""Permits keep to a rate and to a number at once, whoever asks how often."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlost.core.limits import Limit, granted, refunded
from unlost.errors import ConfigurationError

#: Eighths of a second are exact in binary.
ASKS = st.lists(
    st.tuples(st.integers(0, 40).map(lambda eighths: eighths / 8), st.integers(0, 9)), max_size=60
)
RATES = st.builds(
    Limit,
    name=st.just("bank"),
    rate=st.integers(1, 16),
    per=st.sampled_from([timedelta(seconds=1), timedelta(seconds=16)]),
    burst=st.integers(1, 8),
)
#: Since a boot, and since 1970: there a double knows a quarter of a microsecond.
CLOCKS = st.one_of(
    st.integers(0, 10**7).map(lambda eighths: eighths / 8),
    st.integers(1_600_000_000 * 10**6, 2_600_000_000 * 10**6).map(lambda micros: micros / 10**6),
)


@given(RATES, ASKS, CLOCKS)
def test_no_stretch_of_time_has_more_than_the_rate_and_a_burst(
    limit: Limit, asks: list[tuple[float, int]], now: float
) -> None:
    """Between any two grants, both included: at most ``burst + rate * t / per``."""
    paid = 0.0
    given_at: list[tuple[float, int]] = []
    for wait, wanted in asks:
        now += wait
        grant = granted(limit, wanted=wanted, taken=0, paid_until=paid, now=now)
        paid = grant.paid_until
        given_at.append((now, grant.permits))
    rate = limit.rate / limit.per.total_seconds() if limit.rate else 0.0
    for index, (begin, _) in enumerate(given_at):
        total = 0
        for at, permits in given_at[index:]:
            total += permits
            assert total <= limit.burst + rate * (at - begin) + 1e-4


@given(RATES, CLOCKS)
def test_whoever_waits_as_long_as_told_gets_a_permit(limit: Limit, now: float) -> None:
    """``wait`` is enough, each time, and the rate is not just kept below: it is reached."""
    grant = granted(limit, wanted=100, taken=0, paid_until=0.0, now=now)
    assert grant.permits == limit.burst
    for _ in range(20):
        now += grant.wait
        grant = granted(limit, wanted=1, taken=0, paid_until=grant.paid_until, now=now)
        assert grant.permits == 1


def test_so_many_at_once_and_no_more() -> None:
    """What runs elsewhere is taken off."""
    limit = Limit(name="bank", concurrent=5)
    assert granted(limit, wanted=9, taken=0, paid_until=0.0, now=1.0).permits == 5
    assert granted(limit, wanted=9, taken=4, paid_until=0.0, now=1.0).permits == 1
    assert granted(limit, wanted=9, taken=7, paid_until=0.0, now=1.0).permits == 0


def test_both_bounds_hold_together() -> None:
    """The smaller one decides."""
    limit = Limit(name="bank", rate=10, burst=3, concurrent=2)
    assert granted(limit, wanted=9, taken=0, paid_until=0.0, now=1.0).permits == 2
    assert granted(limit, wanted=9, taken=1, paid_until=1.2, now=1.0).permits == 1


def test_permits_that_found_no_message_are_given_back() -> None:
    """As if they had never been asked for."""
    limit = Limit(name="bank", rate=4, burst=4)
    grant = granted(limit, wanted=4, taken=0, paid_until=8.0, now=8.0)
    assert refunded(limit, unused=3, paid_until=grant.paid_until) == 8.25


@pytest.mark.parametrize(
    "wrong",
    [{}, {"name": "", "rate": 1}, {"rate": 0}, {"concurrent": 0}, {"rate": 1, "per": timedelta(0)}],
)
def test_a_limit_out_of_range_is_refused(wrong: dict[str, object]) -> None:
    """A mistake shows where it is written."""
    with pytest.raises(ConfigurationError, match="Limit"):
        Limit(**{"name": "bank", **wrong})  # type: ignore[arg-type]
