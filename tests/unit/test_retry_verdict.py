"""The verdict on a run of retries finds what is lost, early, elsewhere or changed."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.support.retry_verdict import Start, Window, lateness, made_up_for, problems_of
from unlost.core import headers as h

SENT = {1: "r.one"}


def start(attempt: int, at_ms: float, **changed: Any) -> Start:
    """Return a start of message 1, which asks for two seconds."""
    headers = {"id": "x", h.ATTEMPT: attempt, h.QUEUE: "r.one", "x-death": attempt}
    if attempt > 1:
        headers[h.DUE] = 3000
    fields: dict[str, Any] = {
        "number": 1,
        "attempt": attempt,
        "at_ms": at_ms,
        "after_ms": 2000,
        "queue": "r.one",
        "headers": headers,
        "properties": {"priority": 1, "message_id": f"x.0.{attempt}"},
    }
    return Start(**{**fields, **changed})


FIRST, SECOND = start(1, 1000), start(2, 3050)


def test_a_retry_in_time_on_its_queue_as_it_was_is_no_problem() -> None:
    """Only what belongs to the attempt differs."""
    assert problems_of([FIRST, SECOND], SENT) == []


@pytest.mark.parametrize(
    ("starts", "word"),
    [
        ([], "lost"),
        ([FIRST], "lost"),
        ([FIRST, start(2, 2990)], "early"),
        ([FIRST, start(2, 3050, headers={**SECOND.headers, h.DUE: 2500})], "early"),
        ([FIRST, start(2, 3050, queue="r.two")], "came from r.one, then r.two"),
        ([FIRST, start(2, 3050, headers={**SECOND.headers, "id": "y"})], "id: 'x' -> 'y'"),
        ([FIRST, start(2, 3050, properties={"priority": 4})], "priority: 1 -> 4"),
    ],
)
def test_each_fault_is_found(starts: list[Start], word: str) -> None:
    """Lost, early by the clock or by what was asked, on another queue, or another message."""
    (problem,) = problems_of(starts, SENT)
    assert word in problem


def test_lateness_is_counted_from_when_the_broker_lets_go() -> None:
    """A delay of 1.6 s waits for 2 on the path; what was due in an outage is left out."""
    assert lateness([FIRST, SECOND]).seconds == [0.05]
    rounded = [start(1, 1000, after_ms=1600), start(2, 3050, headers={**SECOND.headers, h.DUE: 2600})]
    assert lateness(rounded).quantile(1) == pytest.approx(0.05)
    assert lateness([FIRST, SECOND], apart=[Window(2500, 3500)]).seconds == []


@pytest.mark.parametrize(
    ("late_ms", "end_ms"),
    [
        ({3: 4000, 4: 3000, 5: 1500, 6: 100, 7: 2000}, 6000),
        ({3: 4000, 4: 100, 5: 100}, 4000),
        ({3: 4000}, None),
    ],
)
def test_an_outage_lasts_until_a_second_in_which_all_are_on_time(
    late_ms: dict[int, int], end_ms: float | None
) -> None:
    """Its backlog is part of it, what is late afterwards is not; without such a second it has no end."""
    starts = [
        start(attempt, 1000 if attempt == 1 else due * 1000 + late, number=due, headers={h.DUE: due * 1000})
        for due, late in late_ms.items()
        for attempt in (1, 2)
    ]
    outage = made_up_for(starts, Window(2000, 3500))
    assert outage == Window(2000, math.inf if end_ms is None else end_ms)
