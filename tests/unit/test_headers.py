"""The headers of successors, held copies and letters, and readers that take whatever a client sent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from amqp.serialization import dumps
from celery.app.task import Context
from hypothesis import given
from hypothesis import strategies as st

from unlost.core import headers as h
from unlost.core.clock import epoch_ms
from unlost.core.headers import Failure
from unlost.core.ids import Generation, MessageId

DUE = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
OWN: dict[str, Any] = {
    "lang": "py",
    "task": "shop.charge",
    "id": "m",
    "retries": 0,
    "x-tenant": "acme",
    "x-death-row": "the application's own",
    "x-optional": True,
    h.QUEUE: "shop.payments",
    h.ATTEMPT: 1,
}
BROKERS = {
    "x-death": [{"count": 77}],
    "x-delivery-count": 77,
    "x-acquired-count": 77,
    "x-opt-delivery-time": 1,
    "x-opt-": 1,
    "x-first-death-queue": "q",
    "x-last-death-reason": "expired",
}
LOCAL = {h.HOLDER: "someone", h.RAW_BODY: b"[]"}

HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.datetimes(),
    st.lists(st.integers()),
    st.dictionaries(st.text(), st.integers()),
)


def test_strip_takes_what_others_own() -> None:
    """Headers of the broker and of the process do not travel on; all others do, look-alikes too."""
    assert h.strip({**OWN, **BROKERS, **LOCAL}) == OWN


@pytest.mark.parametrize("name", [*BROKERS, *LOCAL])
def test_no_message_of_ours_carries_them(name: str) -> None:
    """Successor, held copy and letter are all stripped."""
    headers = {**OWN, **BROKERS, **LOCAL}

    assert name not in h.successor(headers, Generation(0, 2), None)
    assert name not in h.held(headers, DUE)
    assert name not in h.letter(headers, Generation(0, 2), Failure(reason="r"))


def test_successor_is_the_next_attempt() -> None:
    """A retry names its generation, tells Celery its retries, and forgets its predecessor's holds."""
    changed = h.successor({**OWN, h.HOLDS: 4, h.DUE: 1}, Generation(2, 3), DUE)

    assert changed == {**OWN, h.ATTEMPT: 3, h.REDRIVES: 2, "retries": 2, h.DUE: epoch_ms(DUE)}


def test_successor_without_a_delay_has_no_due() -> None:
    """A successor that may run at once does not inherit its predecessor's due time."""
    assert h.DUE not in h.successor({**OWN, h.DUE: 1}, Generation(0, 2), None)


def test_held_is_the_same_generation_counted() -> None:
    """A held copy keeps what it is and counts how often it was put back."""
    assert h.held(OWN, DUE) == {**OWN, h.HOLDS: 1, h.DUE: epoch_ms(DUE)}
    assert h.held({**OWN, h.HOLDS: 4}, DUE)[h.HOLDS] == 5
    assert h.held({**OWN, h.HOLDS: "many"}, DUE)[h.HOLDS] == 1


def test_letter_says_why() -> None:
    """A letter keeps the message's own headers and adds its generation and the failure."""
    failure = Failure("permanent", "shop.Declined", "no funds", "Traceback ...", "host:1", 5)

    assert h.letter(OWN, Generation(1, 3), failure) == {
        **OWN,
        h.ATTEMPT: 3,
        h.REDRIVES: 1,
        h.DEATH_REASON: "permanent",
        h.DEATH_EXCEPTION_TYPE: "shop.Declined",
        h.DEATH_EXCEPTION: "no funds",
        h.DEATH_TRACEBACK: "Traceback ...",
        h.DEATH_WORKER: "host:1",
        h.DEATH_FAILED_AT: 5,
    }


def on_the_wire(headers: dict[str, Any]) -> int:
    """Return how many bytes a header table takes in a frame."""
    return len(dumps("F", [headers]))


@pytest.mark.parametrize("character", ["x", "ü", "€", "😀", "\ud800", "\x00"])
@pytest.mark.parametrize("length", [5_000, 1_000_000])
@pytest.mark.parametrize("own", [0, 24_000])
def test_a_letter_fits_its_budget(character: str, length: int, own: int) -> None:
    """However much an exception says, and in whatever script, the headers stay within 32 KiB."""
    text = character * length
    letter = h.letter(
        {**OWN, "x-note": "n" * own}, Generation(0, 2), Failure("permanent", text, text, text, text)
    )

    assert on_the_wire(letter) <= h.LETTER_BUDGET
    for name in (h.DEATH_EXCEPTION_TYPE, h.DEATH_EXCEPTION, h.DEATH_TRACEBACK, h.DEATH_WORKER):
        letter[name].encode()


@given(st.text(max_size=50), st.integers(0, 1000), st.integers(0, 5000), st.integers(0, 24_000))
def test_a_letter_fits_whatever_it_carries(text: str, wide: int, long: int, own: int) -> None:
    """The budget holds for every share between the message's own headers and the failure's text."""
    failure = Failure("r", text * wide, text * long, text * long, text * wide)
    letter = h.letter({**OWN, "x-note": "n" * own}, Generation(0, 2), failure)

    assert on_the_wire(letter) <= h.LETTER_BUDGET


def test_a_letter_of_huge_headers_adds_little() -> None:
    """Headers of the message that fill the budget alone are kept, and little is added."""
    huge = {**OWN, "x-note": "n" * 40_000}
    letter = h.letter(huge, Generation(0, 2), Failure("r", "t", "e" * 9999, "b" * 9999, "w"))

    assert letter["x-note"] == huge["x-note"]
    assert on_the_wire(letter) - on_the_wire(huge) < 2048


def test_a_long_traceback_keeps_its_end() -> None:
    """The line that raised is the last one, so the beginning is cut; of an exception it is the end."""
    failure = Failure("r", exception="first" + "." * 50_000, traceback="." * 50_000 + "last")
    letter = h.letter(OWN, Generation(0, 2), failure)

    assert letter[h.DEATH_TRACEBACK].startswith("... ")
    assert letter[h.DEATH_TRACEBACK].endswith("last")
    assert letter[h.DEATH_EXCEPTION].startswith("first")
    assert letter[h.DEATH_EXCEPTION].endswith(" ...")


def test_a_message_of_plain_celery_is_the_first() -> None:
    """Without our headers a delivery is the first attempt of a message that was never redriven."""
    assert h.generation_of({"task": "t", "id": "m"}) == Generation(0, 1)
    assert h.generation_of({h.ATTEMPT: 3, h.REDRIVES: 2}) == Generation(2, 3)


@pytest.mark.parametrize("value", ["3", 3.0, True, None, -1, 2**31, 2**63 - 1, [3]])
def test_an_impossible_generation_is_the_first(value: Any) -> None:
    """What cannot be a count is ignored, so that a client can neither stop nor overflow a worker."""
    assert h.generation_of({h.ATTEMPT: value, h.REDRIVES: value}) == Generation(0, 1)


@given(HOSTILE, HOSTILE)
def test_readers_never_raise(one: Any, other: Any) -> None:
    """Whatever the headers hold, identity and generation are read and can be kept by a store."""
    generation = h.generation_of({h.ATTEMPT: one, h.REDRIVES: other})
    message = h.message_id_of({"task": one, "id": other, "replaced_task_nesting": one})

    assert 0 <= generation.redrives < 2**31
    assert 1 <= generation.attempt < generation.next_attempt().attempt < 2**31
    assert isinstance(str(message), str)


def test_the_nesting_belongs_to_the_identity() -> None:
    """A task that replaced itself is another message under the same id."""
    headers = {"task": "t", "id": "m", "replaced_task_nesting": 2}

    assert h.message_id_of(headers) == MessageId("t", "m", 2)
    assert str(h.message_id_of(headers)) == "t[m]+2"


def test_a_letter_that_is_delivered_again_is_a_redrive() -> None:
    """Its generation is the first attempt of the next redrive, and its retry is a letter no more."""
    dead = h.letter({h.REDRIVES: 2, h.ATTEMPT: 5}, Generation(2, 5), h.Failure(reason="permanent"))
    assert h.generation_of(dead) == Generation(3, 1)
    retried = h.successor(dead, Generation(3, 2), None)
    assert h.generation_of(retried) == Generation(3, 2)
    assert not any(name.startswith("x-unlost-death-") for name in retried)


def test_a_letter_that_is_held_remains_the_same_redrive() -> None:
    """A copy that waits keeps what makes it a redrive."""
    dead = h.letter({h.REDRIVES: 0}, Generation(0, 1), h.Failure(reason="permanent"))
    due = datetime(2026, 1, 1, tzinfo=UTC)
    assert h.generation_of(h.held(dead, due)) == h.generation_of(dead) == Generation(1, 1)


def test_a_letter_without_its_large_headers_tells_their_names() -> None:
    """What fits is kept, what was said of the death first of all; the rest is named."""
    headers: dict[Any, Any] = {
        "task": "shop.charge",
        "large": "x" * 100_000,
        "nested": {"n": 1},
        b"\xff": 1,
        **{f"h{number}": number for number in range(400)},
        h.DEATH_REASON: "malformed",
    }
    light = h.lightened(headers)
    assert light["task"] == "shop.charge"
    assert light[h.DEATH_REASON] == "malformed"
    assert dict[Any, Any](light)[b"\xff"] == 1
    assert light[h.DEATH_DROPPED].startswith("large, nested, h")
    assert len(light) < 300


def test_names_that_are_no_text_survive() -> None:
    """A header's name that is no UTF-8 is bytes, and nothing trips over it."""
    headers: dict[Any, Any] = {b"x-opt-\xff": 1, "x-opt-a": 2}
    assert list(h.strip(headers).values()) == [1]


def test_a_task_travels_without_what_says_nothing() -> None:
    """What Celery sends empty is left out; the same headers with a value, and all others, are kept."""
    empty = h.implied()
    said = {"timelimit": [9, 5], "retries": 1, "group": "g", "stamps": {"a": 1}, "ignore_result": False}

    kept = {"timelimit": [None, None], "stamps": {}}

    assert h.lean({**OWN, **empty}) == {k: v for k, v in OWN.items() if k != "retries"} | kept
    assert h.lean({**OWN, **empty, **said, "x-nothing": None}) == {**OWN, **said, "x-nothing": None}
    assert h.lean({"group": None, "retries": 0}) == {"group": None, "retries": 0}, "no task"


def test_celery_takes_a_missing_header_for_what_it_implies() -> None:
    """A worker's context says of a lean message what it says of the same one in full, whoever runs it."""
    full = {**OWN, **h.implied(), "x-tenant": None}
    lean = Context(h.lean(full))
    for name in h.implied():
        assert getattr(lean, name) == getattr(Context(full), name)
    assert Context(full).as_execution_options() == lean.as_execution_options()
