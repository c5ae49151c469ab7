"""Names and routing keys: total, the same as kombu's, and refused where the path could not carry them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport import native_delayed_delivery as kombu_delay

from unlost.errors import ConfigurationError, TopologyError
from unlost.topology import naming


@st.composite
def delays(draw: st.DrawFn) -> tuple[timedelta, int]:
    """Draw a number of levels and a delay they can hold."""
    levels = draw(st.integers(1, naming.MAX_LEVELS))
    longest = naming.longest_delay(levels)
    return draw(st.timedeltas(timedelta(0), longest)), levels


def seconds_of(routing_key: str, levels: int) -> int:
    """Read the bits of a delay routing key back."""
    return int("".join(routing_key.split(".")[:levels]), 2)


@given(delays(), st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8}){0,3}", fullmatch=True))
def test_a_delay_survives_the_round_trip(drawn: tuple[timedelta, int], queue: str) -> None:
    """A routing key says the delay rounded up to seconds, at least one, and ends with the queue's address."""
    delay, levels = drawn
    key = naming.delay_routing_key(delay, queue, levels)
    held = timedelta(seconds=seconds_of(key, levels))
    assert held >= delay
    assert held < delay + timedelta(seconds=1) or held == timedelta(seconds=1)
    assert ".".join(key.split(".")[levels:]) == f"q:{queue}"


@given(st.integers(1, 2**28 - 1))
def test_routing_keys_are_those_of_kombu(seconds: int) -> None:
    """With 28 levels the routing key is what kombu computes."""
    ours = naming.delay_routing_key(timedelta(seconds=seconds), "shop.stock", 28)
    assert ours == kombu_delay.calculate_routing_key(seconds, "q:shop.stock")


@pytest.mark.parametrize("level", [0, 2, 20, 27])
def test_level_names_are_those_of_kombu(level: int) -> None:
    """A level is named as kombu names it."""
    assert naming.delay_level("shop", level) == kombu_delay.level_name(level, "shop")


def test_entry_and_delivery_exchanges_are_those_of_kombu() -> None:
    """The path begins and ends where kombu's does."""
    assert naming.delay_entry_exchange("shop", 28) == kombu_delay.level_name(kombu_delay.MAX_LEVEL, "shop")
    assert naming.delay_delivery_exchange("shop") == kombu_delay._celery_delayed_delivery_exchange("shop")


@pytest.mark.parametrize(
    ("milliseconds", "seconds"), [(-5000, 1), (0, 1), (1, 1), (1000, 1), (1001, 2), (7000, 7)]
)
def test_a_delay_is_rounded_up(milliseconds: int, seconds: int) -> None:
    """A delay is never shortened, and is at least a second."""
    key = naming.delay_routing_key(timedelta(milliseconds=milliseconds), "q", 4)
    assert seconds_of(key, 4) == seconds


def test_a_delay_beyond_the_levels_is_refused() -> None:
    """A delay that the levels cannot hold is an error, not a shorter delay."""
    assert naming.delay_routing_key(timedelta(seconds=15), "q", 4) == "1.1.1.1.q:q"
    with pytest.raises(ConfigurationError, match=r"4 delay levels.*0:00:15"):
        naming.delay_routing_key(timedelta(seconds=15, microseconds=1), "q", 4)


def test_the_longest_name_fits_the_longest_routing_key() -> None:
    """A queue name of the greatest length still fits AMQP's 255-byte routing key with all levels."""
    name = naming.check_queue_name("q" * naming.MAX_QUEUE_NAME_BYTES)
    assert len(naming.delay_routing_key(timedelta(seconds=1), name, naming.MAX_LEVELS).encode()) <= 255


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("amq.tasks", "reserved"),
        ("q" * 191, "190 bytes"),
        ("ü" * 96, "190 bytes"),
        ("shop.*", "wildcards"),
        ("shop#", "wildcards"),
        ("q:stock", "address"),
        ("shop.q:stock", "address"),
    ],
)
def test_a_queue_name_the_path_cannot_address_is_refused(name: str, reason: str) -> None:
    """An unusable queue name is refused with the reason and a way out."""
    with pytest.raises(TopologyError, match=f"{reason}.*choose another name"):
        naming.check_queue_name(name)


@pytest.mark.parametrize("name", ["shop.payments", "a", "faq:x", "q" * 190])
def test_a_usable_queue_name_is_returned(name: str) -> None:
    """A usable name passes unchanged."""
    assert naming.check_queue_name(name) == name
