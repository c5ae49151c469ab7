"""Delivery tags and what they confirm, compared with the plainest account of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlost.broker.confirms import OutOfStep, Unconfirmed

#: A publish, or a confirm of the nth outstanding message, alone or with all before it.
STEPS = st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 30), st.booleans())), max_size=80)


@given(STEPS)
def test_each_confirm_takes_exactly_what_it_names(steps: list[tuple[int, bool] | None]) -> None:
    """Whatever the order of confirms, single and multiple, each message is taken out once, by its own tag."""
    unconfirmed: Unconfirmed[int] = Unconfirmed()
    outstanding: list[int] = []
    sent = 0
    for step in steps:
        if step is None:
            sent += 1
            unconfirmed.sent(sent)
            outstanding.append(sent)
        elif outstanding:
            which, multiple = step
            tag = outstanding[which % len(outstanding)]
            expected = [each for each in outstanding if each == tag or (multiple and each < tag)]
            assert unconfirmed.confirmed(tag, multiple=multiple) == expected
            outstanding = [each for each in outstanding if each not in expected]
        assert list(unconfirmed) == outstanding
        assert len(unconfirmed) == len(outstanding)
        if outstanding:
            assert unconfirmed.oldest() == outstanding[0]


def test_tag_zero_means_all() -> None:
    """``multiple`` with tag 0 confirms all that are outstanding (AMQP 0-9-1, basic.ack)."""
    unconfirmed: Unconfirmed[str] = Unconfirmed()
    for each in "abc":
        unconfirmed.sent(each)
    assert unconfirmed.confirmed(0, multiple=True) == ["a", "b", "c"]


@pytest.mark.parametrize(("tag", "multiple"), [(1, False), (3, False), (3, True)])
def test_a_confirm_of_nothing_outstanding_is_an_error(tag: int, multiple: bool) -> None:
    """A tag that was confirmed before, or never given, means that the channel cannot be believed."""
    unconfirmed: Unconfirmed[str] = Unconfirmed()
    unconfirmed.sent("a")
    unconfirmed.sent("b")
    assert unconfirmed.confirmed(1, multiple=False) == ["a"]
    with pytest.raises(OutOfStep, match=f"delivery tag {tag}"):
        unconfirmed.confirmed(tag, multiple=multiple)


def test_nothing_outstanding_has_no_oldest() -> None:
    """``oldest`` of nothing is a LookupError."""
    with pytest.raises(LookupError):
        Unconfirmed[str]().oldest()
