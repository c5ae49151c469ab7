"""Waiting for a condition."""

from __future__ import annotations

from datetime import timedelta

import pytest

from unlost.errors import HarnessError
from unlost.testing.waiting import wait_until

AT_ONCE = timedelta(0)
BRIEFLY = timedelta(milliseconds=5)


def test_the_answer_is_returned() -> None:
    """What the condition answered is handed to the caller."""
    assert wait_until(lambda: "here", AT_ONCE, "it is here") == "here"


def test_the_condition_is_asked_until_it_holds() -> None:
    """A condition that holds at the third question ends the wait then."""
    answers = iter([0, 0, 3, 4])
    assert wait_until(lambda: next(answers), timedelta(seconds=5), "three", poll=AT_ONCE) == 3


def test_the_deadline_names_what_was_awaited() -> None:
    """The error says how long, for what, and why not."""
    with pytest.raises(HarnessError, match=r"waited 0\.005 s in vain until pigs fly: no wings"):
        wait_until(lambda: False, BRIEFLY, "pigs fly", poll=BRIEFLY, why_not=lambda: "no wings")


def test_an_error_in_the_condition_ends_the_wait() -> None:
    """A condition that cannot be asked is not asked again."""

    def broken() -> bool:
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        wait_until(broken, timedelta(seconds=5), "never")
