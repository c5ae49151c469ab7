"""Keys are equal where payloads mean the same, and only there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlost.core.ids import Generation, MessageId
from unlost.core.keys import Claim, canonical, fingerprint, key_id, recorded
from unlost.core.settlement import Row, State

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values, values)
def test_keys_are_equal_only_for_equal_values(one: Any, other: Any) -> None:
    """The canonical text is a faithful copy: it reads back as the value and tells values apart."""
    assert json.loads(canonical(one)) == one
    assert (canonical(one) == canonical(other)) == (
        json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    )


def test_the_order_of_names_does_not_matter() -> None:
    """Equal mappings are one key, however they were written."""
    assert key_id("t", {"a": 1, "b": 2}) == key_id("t", {"b": 2, "a": 1})
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_types_tell_keys_apart() -> None:
    """``1``, ``"1"`` and ``true`` are three keys."""
    assert len({key_id("t", value) for value in (1, "1", True)}) == 3


def test_spaces_tell_keys_apart() -> None:
    """The same value in another space is another key."""
    assert key_id("one", 1) != key_id("two", 1)


@given(st.text())
def test_every_key_fits(text: str) -> None:
    """However long or strange a key is, a store can keep its identity; short ones stay readable."""
    name = str(key_id("t" * 230, text))
    assert len(name) <= 512
    assert name.isascii()


def test_long_keys_differ_in_their_digests() -> None:
    """Two long keys with one beginning are two keys."""
    assert key_id("t", "x" * 1000 + "1") != key_id("t", "x" * 1000 + "2")


def test_what_is_no_json_is_refused() -> None:
    """A key must be something that every process would write alike."""
    for value in (object(), float("nan"), {1, 2}):
        with pytest.raises((TypeError, ValueError)):
            canonical(value)


def test_a_seal_can_be_read() -> None:
    """What a claim records is what a duplicate finds."""
    row = Row(state=State.LEASED, generation=Generation(0, 1), token=1)
    message = MessageId("t", "1")

    assert recorded(Claim(key_id("t", 1), row, "f", message).seal("5")) == ("f", "t[1]", "5")
    assert recorded(Claim(key_id("t", 1), row, "f", message).seal(None)).result is None
