"""A delivery's properties are read as py-amqp reads them, or left to it."""

from __future__ import annotations

from datetime import UTC, datetime
from struct import pack
from typing import Any

import amqp
import pytest
from amqp.serialization import decode_properties_basic
from hypothesis import given
from hypothesis import strategies as st

from unlost.broker.properties import read_properties

texts = st.text(max_size=40)
#: A name or short text has a length of one octet.
names = st.text(max_size=20)
usual = st.recursive(
    st.none() | st.booleans() | texts | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
properties = st.fixed_dictionaries(
    {"application_headers": st.dictionaries(names, usual, max_size=8)},
    optional={
        "content_type": names,
        "content_encoding": names,
        "delivery_mode": st.integers(0, 255),
        "priority": st.integers(0, 255),
        "correlation_id": names,
        "reply_to": names,
        "expiration": names,
        "message_id": names,
    },
)


def encoded(**given: Any) -> bytes:
    """Return properties as they stand in a content header."""
    content: bytes = amqp.Message(**given)._serialize_properties()
    return content


@given(properties)
def test_what_is_usual_is_read_as_py_amqp_reads_it(given: dict[str, Any]) -> None:
    """All that tasks carry, in whatever combination."""
    content = encoded(**given)
    assert read_properties(content, 0) == decode_properties_basic(content, 0)[0]


@given(st.binary(max_size=80))
def test_garbage_is_read_as_py_amqp_reads_it_or_left_to_it(content: bytes) -> None:
    """Whatever comes: no other value, and no error."""
    read = read_properties(content, 0)
    if read is not None:
        # Compared as text, for a NaN equals nothing.
        assert repr(read) == repr(decode_properties_basic(content, 0)[0])


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(encoded(application_headers={"at": datetime(2026, 1, 1, tzinfo=UTC)}), id="a time"),
        pytest.param(encoded(application_headers={"n": "x"}, user_id="guest"), id="a rare property"),
        pytest.param(b"\x20\0" + pack(">I", 8) + b"\x01nS" + pack(">I", 1) + b"\xff", id="no UTF-8"),
        pytest.param(encoded(application_headers={"n": "cut off"})[:-3], id="cut off"),
        pytest.param(memoryview(encoded(content_type="text/plain")), id="no bytes"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_what_is_unusual_is_left_to_py_amqp(content: Any) -> None:
    """It alone says what such a message means."""
    assert read_properties(content, 0) is None
