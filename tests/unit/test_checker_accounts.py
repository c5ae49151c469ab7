"""The sums agree, no bystander is poison, effects come in time: histories that trip each and do not."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support.histories import history
from unlost.chaos.checker import Checker, Conserved, NoBystanders, Timely, Verdict
from unlost.chaos.checker.accounts import quantile

VALID, INVALID, UNKNOWN = Verdict.VALID, Verdict.INVALID, Verdict.UNKNOWN
DRAINED = "9 drain ok residual q messages=0"


def judged(checker: Checker, text: str) -> tuple[Verdict, list[tuple[str, str | None]]]:
    """Return the verdict, and kind and value of each anomaly."""
    finding = checker.check(history(text))
    return finding.verdict, [(anomaly.kind, anomaly.value) for anomaly in finding.anomalies]


# --- rule 5: conservation


def test_sums_that_agree_are_conserved() -> None:
    """Confirmed and recovered promises are as many as effects and letters; repeated effects do not matter."""
    run = f"""
        1 client ok publish a
        2 client ok publish b
        3 client info publish c
        4 db ok effect a
        5 db ok effect a
        6 db ok effect c
        7 dlq ok dead b
        8 dlq ok letters q.dlq messages=1 read=1
        {DRAINED}
    """
    assert judged(Conserved(), run) == (VALID, [])


def test_a_promise_without_an_end_is_an_imbalance() -> None:
    """One went in that did not come out."""
    run = f"1 client ok publish a\n2 client ok publish b\n3 db ok effect a\n{DRAINED}"
    assert judged(Conserved(), run) == (INVALID, [("imbalance", None)])


def test_what_may_still_be_in_a_queue_is_unknown() -> None:
    """Without a proof that the queues are empty the sum proves nothing."""
    verdict, anomalies = judged(Conserved(), "1 client ok publish a")
    assert (verdict, anomalies[0]) == (UNKNOWN, ("imbalance", None))


@pytest.mark.parametrize("counts", ["messages=2 read=1", "messages=1 read=2", "read=1", "messages=1"])
def test_letters_that_the_broker_counts_otherwise_trip_it(counts: str) -> None:
    """The broker's own counter is the independent check; one that is missing is none."""
    run = f"1 client ok publish a\n2 dlq ok dead a\n3 dlq ok letters q.dlq {counts}\n{DRAINED}"
    assert judged(Conserved(), run) == (INVALID, [("miscounted letters", "q.dlq")])


# --- rule 6: bystanders


@pytest.mark.parametrize("reason", ["poison", "delivery_limit"])
def test_a_poison_letter_of_a_task_that_never_started_is_a_bystander(reason: str) -> None:
    """It was only prefetched by a worker that another task killed."""
    run = f'1 client ok publish a\n2 dlq ok dead a reason="{reason}"'
    assert judged(NoBystanders(), run) == (INVALID, [("bystander", "a")])


@pytest.mark.parametrize(
    "run",
    [
        '1 w ok start a pid=7\n2 dlq ok dead a reason="poison"',
        '2 dlq ok dead a reason="rejected"',
        "2 dlq ok dead a",
        '2 dlq ok dead b reason="poison" own=false',
        '2 dlq info dead a reason="poison"',
    ],
    ids=["started", "other reason", "no reason", "successor in the same letter", "no letter"],
)
def test_no_bystander_without_an_accusation(run: str) -> None:
    """A task that ran may be poison, and one that waits in another's letter is not accused."""
    assert judged(NoBystanders(), run) == (VALID, [])


# --- rule 7: time

LATE = """
    1 client ok publish a
    2 client ok publish b
    3 nemesis info kill_broker target="x"
    4 db ok effect a
    5 nemesis ok kill_broker target="x"
    9 db ok effect b
"""


def test_an_effect_after_the_bound_is_late() -> None:
    """b took seven seconds."""
    assert judged(Timely(within=timedelta(seconds=6)), LATE) == (INVALID, [("late", "b")])
    assert judged(Timely(within=timedelta(seconds=7)), LATE) == (VALID, [])


def test_the_last_effect_comes_soon_after_the_last_fault() -> None:
    """It came four seconds after the outage was over."""
    assert judged(Timely(settled_within=timedelta(seconds=3)), LATE) == (INVALID, [("late to settle", None)])
    assert judged(Timely(settled_within=timedelta(seconds=4)), LATE) == (VALID, [])


def test_without_a_bound_time_is_measured() -> None:
    """Quantiles and settling time are figures."""
    figures = Timely().check(history(LATE)).figures
    assert figures == {
        "latency_p50": 3.0,
        "latency_p95": 7.0,
        "latency_p99": 7.0,
        "latency_p100": 7.0,
        "settling": 4.0,
    }


def test_an_empty_history_has_no_figures() -> None:
    """Nothing took no time."""
    assert Timely().check(history("")).figures == {}


def test_quantiles_are_of_what_was_seen() -> None:
    """The nearest rank, never an interpolation."""
    assert [quantile([1, 2, 3, 4], part) for part in (0, 0.25, 0.5, 0.51, 1)] == [1, 1, 2, 3, 4]
