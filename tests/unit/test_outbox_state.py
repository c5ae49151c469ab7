"""What becomes of a message in the outbox is decided by pure functions."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlost.core.message import Outgoing
from unlost.errors import (
    AccessRefused,
    BrokerError,
    BrokerUnavailable,
    ConfirmUnknown,
    InvalidMessage,
    Refused,
    Unroutable,
)
from unlost.outbox.state import Again, Backoff, Delivered, Entry, Park, in_order, judge, waves

BACKOFF = Backoff()


def entry(number: int = 1, key: str | None = None, failures: int = 0) -> Entry:
    """Make a claimed row."""
    message = Outgoing(
        exchange="shop", routing_key="shop.work", body=b"", properties={"message_id": str(number)}
    )
    return Entry(number, 1, failures, key, message)


def test_a_confirmed_message_is_delivered() -> None:
    """No error means that the broker has it."""
    assert judge(entry(), None, BACKOFF) == Delivered()


@pytest.mark.parametrize("failures", [0, 5, 500])
def test_what_the_broker_cannot_take_is_parked_with_its_reason(failures: int) -> None:
    """Trying an invalid message again cannot help, so it is parked at once."""
    assert judge(entry(failures=failures), InvalidMessage("too large"), BACKOFF) == Park(
        "InvalidMessage: too large"
    )


@pytest.mark.parametrize("error", [BrokerUnavailable("gone"), AccessRefused("who?"), ConfirmUnknown("?")])
def test_the_way_to_the_broker_is_not_charged_to_the_message(error: BrokerError) -> None:
    """However often the broker cannot be reached or does not answer, the message stays pending, uncounted."""
    verdict = judge(entry(failures=500), error, BACKOFF)
    assert isinstance(verdict, Again)
    assert not verdict.counted
    assert verdict.after == BACKOFF.first


@pytest.mark.parametrize(("failures", "wait"), [(0, 1), (1, 2), (3, 8), (6, 60), (10_000, 60)])
def test_a_full_queue_is_tried_without_end_with_a_growing_wait(failures: int, wait: int) -> None:
    """A refused message is as good as ever: it is never parked, and its wait doubles up to a minute."""
    verdict = judge(entry(failures=failures), Refused("full"), BACKOFF)
    assert verdict == Again(timedelta(seconds=wait), "Refused: full", counted=True)


def test_a_missing_queue_is_waited_for_and_then_parked() -> None:
    """An unroutable message is tried 12 times, about 8 minutes, and then parked."""
    verdicts = [judge(entry(failures=n), Unroutable("no queue"), BACKOFF) for n in range(12)]
    assert [type(each) for each in verdicts] == [Again] * 11 + [Park]


def test_a_reason_is_cut() -> None:
    """However long an error is, what the row keeps of it is short."""
    verdict = judge(entry(), Refused("x" * 10_000), BACKOFF)
    assert isinstance(verdict, Again)
    assert len(verdict.reason) == 500


_KEYS = st.lists(st.sampled_from([None, "a", "b", "c"]), max_size=30)


@given(_KEYS)
def test_waves_hold_every_entry_once_in_the_order_of_its_key(names: list[str | None]) -> None:
    """No two entries of a key are in one wave, and each key's entries follow in their order."""
    entries = [entry(number, key) for number, key in enumerate(names)]
    seen: defaultdict[str | None, list[int]] = defaultdict(list)
    for wave in waves(entries):
        keyed = [each.ordering_key for each in wave if each.ordering_key is not None]
        assert len(keyed) == len(set(keyed))
        for each in wave:
            seen[each.ordering_key].append(each.id)
    for key, ids in seen.items():
        assert ids == [each.id for each in entries if each.ordering_key == key]
    assert sum(len(ids) for ids in seen.values()) == len(entries)


def test_what_has_no_key_is_all_in_flight_at_once() -> None:
    """Without keys there is one wave, however many entries."""
    assert [len(wave) for wave in waves(entry(n) for n in range(50))] == [50]


@given(_KEYS, st.sets(st.integers(0, 29)))
def test_a_claim_takes_no_entry_behind_one_that_it_could_not_lock(
    names: list[str | None], elsewhere: set[int]
) -> None:
    """What is kept of a claim is, for each key, all up to the first row that others hold."""
    everything = [entry(number, key) for number, key in enumerate(names)]
    locked = [each for each in everything if each.id not in elsewhere]
    missing: dict[str, int] = {}
    for each in everything:
        if each.id in elsewhere and each.ordering_key is not None:
            missing.setdefault(each.ordering_key, each.id)
    kept = {each.id for each in in_order(locked, missing)}
    for each in locked:
        behind = any(
            other.id in elsewhere and other.ordering_key == each.ordering_key and other.id < each.id
            for other in everything
        )
        assert (each.id in kept) == (each.ordering_key is None or not behind)
