"""What passes for a task message, and how each defect is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from unlost.core.envelope import (
    LATEST_MS,
    MAX_BODY_DEPTH,
    MAX_DEPTH,
    MAX_HEADER_BYTES,
    MAX_NAME_BYTES,
    TIMES,
    problem_of_body,
    problem_of_depth,
    problem_of_headers,
)

GOOD: dict[str, Any] = {"task": "shop.charge", "id": "m"}


@pytest.mark.parametrize("headers", [None, [], "task", 7])
def test_headers_must_be_a_mapping(headers: Any) -> None:
    """Headers of another shape are named as such."""
    assert problem_of_headers(headers) == "the headers are no mapping"


@pytest.mark.parametrize("name", ["task", "id"])
@pytest.mark.parametrize("value", [None, "", 7, b"m", ["m"]])
def test_task_and_id_must_be_text(name: str, value: Any) -> None:
    """A missing, empty or foreign task name or id is named."""
    assert problem_of_headers({**GOOD, name: value}) == f"header {name!r} is missing or no text"
    assert problem_of_headers({k: v for k, v in GOOD.items() if k != name}) is not None


@pytest.mark.parametrize("name", ["task", "id"])
@pytest.mark.parametrize("value", ["m" * (MAX_NAME_BYTES + 1), "ü" * (MAX_NAME_BYTES // 2 + 1), "\ud800"])
def test_task_and_id_must_fit_the_ledger(name: str, value: str) -> None:
    """A name that neither the ledger nor the AMQP message id can hold is named."""
    problem = problem_of_headers({**GOOD, name: value})

    assert problem == f"header {name!r} is longer than {MAX_NAME_BYTES} bytes or not UTF-8"


@pytest.mark.parametrize("name", ["task", "id"])
def test_task_and_id_must_not_hold_nul(name: str) -> None:
    """PostgreSQL cannot store it, and no store shall differ from another in what it takes."""
    problem = problem_of_headers({**GOOD, name: "a\0b"})

    assert problem == f"header {name!r} holds the character NUL, which PostgreSQL cannot store"


@pytest.mark.parametrize("name", ["retries", "replaced_task_nesting"])
@pytest.mark.parametrize("value", [None, "1", 1.0, True])
def test_counters_must_be_integers(name: str, value: Any) -> None:
    """A counter of another type is named."""
    assert problem_of_headers({**GOOD, name: value}) == f"header {name!r} is no integer"


@pytest.mark.parametrize("value", [[60], [60, 50, 40], "60", 60, ["60", "50"], [60, "50"], [True, None], {}])
def test_time_limits_must_be_a_pair_of_numbers(value: Any) -> None:
    """Time limits that would stop the worker are named."""
    assert problem_of_headers({**GOOD, "timelimit": value}) == "header 'timelimit' is not a pair of numbers"


@pytest.mark.parametrize(
    "value", [[-1, None], [None, -0.5], [1e300, None], [2**62, None], [float("nan"), None]]
)
def test_time_limits_must_end(value: Any) -> None:
    """Limits that have passed before the task starts, or never do, are named."""
    assert problem_of_headers({**GOOD, "timelimit": value}) == "header 'timelimit' is not a pair of numbers"


@pytest.mark.parametrize("value", [[], ["t.work"], {"a": 1}, ()])
@pytest.mark.parametrize("name", ["x-unlost-queue", "x-unlost-correlation-id", "x-unlost-whatever"])
def test_our_headers_must_be_plain_values(name: str, value: Any) -> None:
    """A list or table where a text or number belongs is named; a child would give it back for ever."""
    assert problem_of_headers({**GOOD, name: value}) == f"header {name!r} is no text or number"


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("value", [-1, LATEST_MS + 1, 2**62])
def test_times_must_be_before_the_end_of_time(name: str, value: int) -> None:
    """A time that no calendar has is named; it would be given back for ever."""
    assert problem_of_headers({**GOOD, name: value}) == f"header {name!r} is no time"


@pytest.mark.parametrize(
    "large",
    [
        "x" * MAX_HEADER_BYTES,
        b"x" * MAX_HEADER_BYTES,
        [0] * 12_000,
        {"x" * 250: 0} | {str(n): n for n in range(9000)},
    ],
)
def test_headers_must_leave_room_for_those_of_a_letter(large: Any) -> None:
    """Headers that nearly fill a frame are named: neither a retry nor a letter could be published."""
    problem = problem_of_headers({**GOOD, "large": large})
    assert problem is not None
    assert problem.startswith("the headers are larger than")


def test_headers_must_not_be_nested_too_deep() -> None:
    """Nesting that costs Python's stack counts as too large."""
    nested: Any = 1
    for _ in range(MAX_DEPTH + 2):
        nested = {"n": nested}
    assert problem_of_headers({**GOOD, "nested": nested}) is not None
    assert problem_of_headers({**GOOD, "nested": nested["n"]["n"]["n"]}) is None


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"task": "t" * MAX_NAME_BYTES, "id": "ü" * (MAX_NAME_BYTES // 2)},
        {"retries": 0, "replaced_task_nesting": 3},
        {"retries": -1},
        {"timelimit": None},
        {"timelimit": [0, 0]},
        {"x-unlost-due": 0, "x-unlost-expires": LATEST_MS},
        {b"\xff": 1},
        {"timelimit": [None, None]},
        {"timelimit": (60, 50.5)},
        {"stranger": object()},
    ],
)
def test_sound_headers_pass(more: dict[str, Any]) -> None:
    """Whatever Celery itself sends has no problem."""
    assert problem_of_headers({**GOOD, **more}) is None


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (None, "the body is not [args, kwargs, embed]"),
        ({}, "the body is not [args, kwargs, embed]"),
        ("abc", "the body is not [args, kwargs, embed]"),
        ([[], {}], "the body is not [args, kwargs, embed]"),
        ([[], {}, {}, {}], "the body is not [args, kwargs, embed]"),
        (["args", {}, {}], "args are no list"),
        ([{}, {}, {}], "args are no list"),
        ([[], [], {}], "kwargs are no mapping"),
        ([[], None, {}], "kwargs are no mapping"),
        ([[], {}, []], "embed is no mapping"),
    ],
)
def test_malformed_bodies_are_named(payload: Any, problem: str) -> None:
    """Each part of the triple that has another shape is named."""
    assert problem_of_body(payload) == problem


@pytest.mark.parametrize(
    "payload", [[[], {}, {}], ((), {}, None), [[1], {"a": 1}, {"callbacks": None}], [(1,), {}, {}]]
)
def test_sound_bodies_pass(payload: Any) -> None:
    """Lists or tuples, with or without an embed, are task protocol 2."""
    assert problem_of_body(payload) is None


@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8", "utf-7", "utf-16", None])
@pytest.mark.parametrize("as_text", [True, False])
def test_a_body_may_be_nested_so_deep_and_no_deeper(encoding: str | None, as_text: bool) -> None:
    """In whatever encoding its brackets are written; many beside each other are not deep."""
    flat: list[Any] = [[] for _ in range(2 * MAX_BODY_DEPTH)]
    for levels, is_fine in ((MAX_BODY_DEPTH, True), (MAX_BODY_DEPTH + 1, False)):
        text = "[" * levels + "]" * levels
        raw = text if as_text else text.encode(encoding or "utf-8")
        assert (problem_of_depth(json.loads(text), raw, encoding) is None) == is_fine
    assert problem_of_depth(flat, json.dumps(flat), encoding) is None


@pytest.mark.parametrize("missing", ["task", "args", "kwargs", "options"])
def test_a_link_that_celery_cannot_send_is_no_signature(missing: str) -> None:
    """It would fail again and again once its task is done."""
    link: dict[str, Any] = {"task": "t", "args": [], "kwargs": {}, "options": {}}
    assert problem_of_body([[], {}, {"callbacks": [link]}]) is None
    del link[missing]
    assert problem_of_body([[], {}, {"callbacks": [link]}]) is not None
