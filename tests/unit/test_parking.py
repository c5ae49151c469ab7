"""Parking waits longer each time, and not for ever."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from unlost.core.parking import LONGEST, next_park


def test_the_waits_double_up_to_a_minute() -> None:
    """The first waits are short, because most deploys are."""
    waits = [next_park(parks, timedelta(hours=1)) for parks in range(8)]
    assert [wait.total_seconds() for wait in waits if wait] == [1, 2, 4, 8, 16, 32, 60, 60]


@given(st.timedeltas(timedelta(0), timedelta(days=2)))
def test_the_waits_cover_the_patience_and_no_more_than_one_wait_beyond(patience: timedelta) -> None:
    """In all a message is parked for its patience, rounded up to the last wait."""
    waited, parks = timedelta(0), 0
    while (wait := next_park(parks, patience)) is not None:
        waited, parks = waited + wait, parks + 1
    assert patience <= waited < patience + LONGEST or patience == waited == timedelta(0)


def test_a_number_from_outside_is_no_reason_to_compute_for_ever() -> None:
    """A header may claim any number of parks."""
    assert next_park(2**31, timedelta(hours=1)) is None
