"""Checkers judge histories written by hand: one that trips each rule, and a near miss that does not."""

from __future__ import annotations

from itertools import product

import pytest

from tests.support.histories import history
from unlost.chaos.checker import (
    Anomalous,
    Checker,
    EffectsOnce,
    ExclusiveEnd,
    Finding,
    NothingFromNowhere,
    NothingLost,
    Verdict,
    check,
    compose,
)
from unlost.chaos.history import History
from unlost.errors import HarnessError

VALID, INVALID, UNKNOWN = Verdict.VALID, Verdict.INVALID, Verdict.UNKNOWN
DRAINED = "9 drain ok residual q messages=0"


def judged(checker: Checker, text: str) -> tuple[Verdict, list[tuple[str, str | None]]]:
    """Return the verdict, and kind and value of each anomaly."""
    finding = checker.check(history(text))
    return finding.verdict, [(anomaly.kind, anomaly.value) for anomaly in finding.anomalies]


def test_messages_that_are_left_are_said_to_be_ready_or_with_consumers() -> None:
    """Whether nobody takes a message or somebody keeps it is the first thing to know."""
    run = history("9 drain ok residual q messages=3 ready=1 unacknowledged=2")
    explanations = [anomaly.explanation for anomaly in NothingLost().check(run).anomalies]
    assert explanations == ["queue q: it still holds 3 messages (1 ready, 2 with consumers)"]


# --- rule 1: nothing lost


def test_a_confirmed_publish_without_an_end_is_lost() -> None:
    """Confirmed, not executed, not dead-lettered, and every queue is empty: lost."""
    run = f"""
        1 client invoke publish a
        2 client ok publish a
        {DRAINED}
    """
    assert judged(NothingLost(), run) == (INVALID, [("lost", "a")])


@pytest.mark.parametrize("end", ["3 db ok effect a", "3 dlq ok dead a"])
def test_a_confirmed_publish_with_an_end_is_not_lost(end: str) -> None:
    """An effect is an end, and so is a letter that an operator can see."""
    run = f"""
        1 client invoke publish a
        2 client ok publish a
        {end}
        {DRAINED}
    """
    assert judged(NothingLost(), run) == (VALID, [])


@pytest.mark.parametrize("end", ["3 worker ok end a", "3 db info effect a", "3 dlq info dead a"])
def test_only_an_end_that_certainly_happened_counts(end: str) -> None:
    """A body that returned, or an end that nobody can be sure of, does not keep a publish from being lost."""
    run = f"2 client ok publish a\n{end}\n{DRAINED}"
    assert judged(NothingLost(), run) == (INVALID, [("lost", "a")])


@pytest.mark.parametrize("outcome", ["fail", "info", "invoke"])
def test_a_publish_without_a_confirm_promises_nothing(outcome: str) -> None:
    """What was never confirmed may be absent."""
    assert judged(NothingLost(), f"1 client {outcome} publish a\n{DRAINED}") == (VALID, [])


def test_a_later_confirm_of_the_same_publish_counts() -> None:
    """A publish that was unknown and then confirmed on its second attempt is a promise."""
    run = f"""
        1 client invoke publish a
        2 client info publish a
        3 client invoke publish a
        4 client ok publish a
        {DRAINED}
    """
    assert judged(NothingLost(), run) == (INVALID, [("lost", "a")])


UNDRAINED = {
    "no count": "",
    "messages left": "9 drain ok residual q messages=1",
    "one of two queues": "9 drain ok residual q messages=0\n9 drain ok residual other messages=2",
    "count unknown": "9 drain info residual q",
    "count hung after a good one": "8 drain ok residual q messages=0\n9 drain invoke residual q",
    "count without a number": "9 drain ok residual q",
    "messages came back": "8 drain ok residual q messages=0\n9 drain ok residual q messages=1",
    "counted before the last publish": "4 drain ok residual q messages=0\n5 client info publish b",
    "counted before the last end": "4 drain ok residual q messages=0\n5 worker ok end b pid=1",
    "counted before the last start": "4 drain ok residual q messages=0\n5 worker ok start b pid=1",
    "counted before the last redrive": "4 drain ok residual q messages=0\n5 dlq ok redrive b",
    "drain hung": "8 drain invoke drain q\n9 drain ok residual q messages=0",
    "drain crashed": "7 drain invoke drain q\n8 drain info drain q\n9 drain ok residual q messages=0",
}


@pytest.mark.parametrize("drain", UNDRAINED.values(), ids=UNDRAINED.keys())
@pytest.mark.parametrize(("end", "missing"), [("", [("missing", "a")]), ("3 db ok effect a", [])])
def test_without_a_proof_of_empty_queues_nothing_is_lost_and_nothing_is_valid(
    drain: str, end: str, missing: list[tuple[str, str]]
) -> None:
    """A drain that is absent, crashed, stale or incomplete is never a pass, and never a loss."""
    verdict, anomalies = judged(NothingLost(), f"2 client ok publish a\n{end}\n{drain}")
    assert verdict is UNKNOWN
    assert anomalies[: len(missing)] == missing
    assert {kind for kind, _ in anomalies[len(missing) :]} == {"undrained"}


@pytest.mark.parametrize("counts", [(0, 1), (1, 0)])
def test_of_two_counts_at_once_the_worse_is_believed(counts: tuple[int, int]) -> None:
    """When no count of a queue is the last, one that found a message leaves the drain unproved."""
    drain = "\n".join(f"9 drain-{left} ok residual q messages={left}" for left in counts)
    assert judged(NothingLost(), f"2 client ok publish a\n{drain}")[0] is UNKNOWN


DRAINS = {
    "second count is empty": "8 drain ok residual q messages=3\n9 drain ok residual q messages=0",
    "count asked and answered": "8 drain invoke residual q\n9 drain ok residual q messages=0",
    "asked and answered at once": "9 drain ok residual q messages=0\n9 drain invoke residual q",
    "counted when the work ended": "9 worker ok end a pid=1\n9 drain ok residual q messages=0",
    "drain ended well": "7 drain invoke drain q\n8 drain ok drain q\n9 drain ok residual q messages=0",
    "drain repeated": "7 drain info drain q\n8 drain ok drain q\n9 drain ok residual q messages=0",
    "effects read afterwards": f"{DRAINED}\n10 db ok effect b\n10 dlq ok dead c",
}


@pytest.mark.parametrize("drain", DRAINS.values(), ids=DRAINS.keys())
def test_a_drain_that_ended_well_is_a_proof(drain: str) -> None:
    """The last word on each queue decides."""
    run = "2 client ok publish a\n3 db ok effect a\n"
    assert judged(NothingLost(), run + drain) == (VALID, [])


def test_a_letter_that_was_sent_back_is_no_end() -> None:
    """A redriven message must come out again; its earlier letter does not excuse its loss."""
    run = f"""
        2 client ok publish a
        3 dlq ok dead a
        4 dlq ok redrive a
        {DRAINED}
    """
    assert judged(NothingLost(), run) == (INVALID, [("lost", "a")])


@pytest.mark.parametrize(
    "after",
    [
        "4 dlq fail redrive a",
        "4 dlq info redrive a\n10 dlq ok dead a",
        "4 dlq ok redrive a\n5 db ok effect a",
    ],
)
def test_a_letter_that_stayed_or_came_out_is_an_end(after: str) -> None:
    """A redrive that failed leaves the letter; one that worked gives an effect or another letter."""
    run = f"2 client ok publish a\n3 dlq ok dead a\n{after}\n{DRAINED}"
    assert judged(NothingLost(), run) == (VALID, [])


def test_a_publish_that_names_no_effect_is_an_error() -> None:
    """A promise that nobody could check does not pass as kept."""
    run = history(f"2 client ok publish\n{DRAINED}")
    with pytest.raises(HarnessError, match="no value"):
        NothingLost().check(run)
    assert check(run, [NothingLost()]).verdict is UNKNOWN


# --- rules 2, 3 and 4


@pytest.mark.parametrize("end", ["2 db ok effect b", "2 dlq ok dead b"])
def test_what_was_never_published_came_from_nowhere(end: str) -> None:
    """An effect or a letter of an unknown value trips the rule."""
    run = f"1 client invoke publish a\n{end}"
    assert judged(NothingFromNowhere(), run) == (INVALID, [("unexpected", "b")])


@pytest.mark.parametrize("outcome", ["ok", "fail", "info", "invoke"])
def test_whatever_was_attempted_may_come_out(outcome: str) -> None:
    """A publish of any outcome explains its effect."""
    run = f"1 client invoke publish a\n2 client {outcome} publish a\n3 db ok effect a"
    assert judged(NothingFromNowhere(), run) == (VALID, [])


@pytest.mark.parametrize(
    ("publishes", "recovered", "wrongly_failed"),
    [
        ("1 c invoke publish a\n2 c ok publish a", 0, 0),
        ("1 c invoke publish a\n2 c info publish a", 1, 0),
        ("1 c invoke publish a", 1, 0),
        ("1 c invoke publish a\n2 c fail publish a", 1, 1),
        ("1 c invoke publish a\n2 c fail publish a\n3 c invoke publish a\n4 c info publish a", 1, 0),
        ("1 c invoke publish a\n2 c info publish a\n3 c invoke publish a\n4 c ok publish a", 0, 0),
    ],
)
def test_what_came_out_unconfirmed_is_counted(publishes: str, recovered: int, wrongly_failed: int) -> None:
    """Unconfirmed values that came out are recovered; wrongly failed if every attempt was called failed."""
    figures = NothingFromNowhere().check(history(f"{publishes}\n5 db ok effect a")).figures
    assert (figures["recovered"], figures["wrongly_failed"]) == (recovered, wrongly_failed)


def test_an_effect_that_happens_twice_is_a_duplicate() -> None:
    """Three effects of one value are one anomaly and two duplicate effects."""
    run = history("1 db ok effect a\n2 db ok effect a\n3 db ok effect a\n4 db ok effect b")
    finding = EffectsOnce().check(run)
    assert finding.verdict is INVALID
    assert [(anomaly.kind, anomaly.value) for anomaly in finding.anomalies] == [("duplicate effect", "a")]
    assert finding.figures == {"effects": 4, "duplicate_effects": 2}


def test_a_body_that_runs_twice_with_one_effect_is_no_duplicate() -> None:
    """Starts, ends, and effects that are not certain may repeat: only effects that happened count."""
    run = """
        1 worker ok start a pid=1
        2 worker info effect a
        3 worker ok start a pid=2
        4 worker ok effect a
        5 worker ok end a pid=2
    """
    assert judged(EffectsOnce(), run) == (VALID, [])


@pytest.mark.parametrize("redrive", ["", "1 dlq fail redrive a", "5 dlq ok redrive a", "1 dlq ok redrive b"])
def test_an_effect_and_a_letter_are_two_ends(redrive: str) -> None:
    """Without a redrive of its own before the effect, a value must not have both."""
    assert judged(ExclusiveEnd(), f"{redrive}\n2 db ok effect a\n3 dlq ok dead a") == (
        INVALID,
        [("two ends", "a")],
    )


@pytest.mark.parametrize("outcome", ["ok", "info", "invoke"])
def test_a_redrive_explains_a_letter_and_a_later_effect(outcome: str) -> None:
    """A redrive that may have worked explains why a dead message took effect."""
    run = f"1 dlq ok dead a\n2 dlq {outcome} redrive a\n3 db ok effect a"
    assert judged(ExclusiveEnd(), run) == (VALID, [])


def test_ends_of_different_values_exclude_nothing() -> None:
    """One value executed and another dead-lettered is how it should be."""
    assert judged(ExclusiveEnd(), "1 db ok effect a\n2 dlq ok dead b") == (VALID, [])


# --- Jepsen's own vectors for total-queue (jepsen/test/jepsen/checker_test.clj)


def everything(text: str) -> tuple[Verdict, set[tuple[str, str | None]], dict[str, int | float]]:
    """Judge by all rules that total-queue has, and by EffectsOnce."""
    judgement = check(history(text), [NothingLost(), NothingFromNowhere(), EffectsOnce()])
    figures = {name: count for finding in judgement.findings for name, count in finding.figures.items()}
    return judgement.verdict, {(found.kind, found.value) for found in judgement.anomalies}, figures


def test_jepsen_empty() -> None:
    """Nothing was queued, and nothing is left."""
    assert everything(DRAINED)[:2] == (VALID, set())


def test_jepsen_sane() -> None:
    """An indeterminate publish that came out is recovered, and no anomaly."""
    verdict, anomalies, figures = everything(f"""
        1 1 invoke publish 1
        2 2 invoke publish 2
        3 2 ok publish 2
        4 3 ok effect 1
        5 3 ok effect 2
        {DRAINED}
    """)
    assert (verdict, anomalies) == (VALID, set())
    assert (figures["recovered"], figures["published"], figures["confirmed"], figures["executed"]) == (
        1,
        2,
        1,
        2,
    )


def test_jepsen_pathological() -> None:
    """Lost, unexpected and duplicated are told apart, and a hung publish is none of them."""
    verdict, anomalies, figures = everything(f"""
        1 1 invoke publish hung
        2 2 invoke publish enqueued
        3 2 ok publish enqueued
        4 3 invoke publish dup
        5 3 ok publish dup
        6 5 ok effect wtf
        7 6 ok effect dup
        8 7 ok effect dup
        {DRAINED}
    """)
    assert verdict is INVALID
    assert anomalies == {("lost", "enqueued"), ("unexpected", "wtf"), ("duplicate effect", "dup")}
    names = ("lost", "unexpected", "duplicate_effects", "recovered", "published", "confirmed")
    assert [figures[name] for name in names] == [1, 1, 1, 0, 3, 2]


# --- anomalies tell their story


def test_an_anomaly_shows_the_life_of_its_value() -> None:
    """The slice of an anomaly holds its own operations and the kill that struck it, and nothing else."""
    run = history(f"""
        1 client ok publish a
        2 client ok publish b
        3 worker ok start a pid=7
        4 nemesis ok kill pids=[7]
        5 db ok effect b
        {DRAINED}
    """)
    (lost,) = NothingLost().check(run).anomalies
    assert [op.index for op in lost.ops] == [0, 2, 3]
    assert lost.explanation == "a: confirmed, but neither executed nor dead-lettered"


def test_anomalies_come_in_the_order_of_the_history() -> None:
    """The value that appeared first is told first."""
    text = f"1 client ok publish z\n2 client ok publish a\n{DRAINED}"
    assert judged(NothingLost(), text) == (INVALID, [("lost", "z"), ("lost", "a")])


# --- composition


def test_the_worst_verdict_wins() -> None:
    """Invalid beats unknown, and unknown beats valid, in any number and order."""
    order = [VALID, UNKNOWN, INVALID]
    for verdicts in (*product(order, repeat=1), *product(order, repeat=2), *product(order, repeat=3)):
        assert compose(verdicts) is max(verdicts, key=order.index)


def test_no_verdict_is_no_pass() -> None:
    """Who asks no checker learns nothing."""
    assert compose([]) is UNKNOWN
    assert check(History(), []).verdict is UNKNOWN


class Broken:
    """A checker with a mistake in it."""

    name = "broken"

    def check(self, history: History) -> Finding:
        """Fail."""
        raise ZeroDivisionError(f"by {len(history) * 0}")


def test_a_checker_that_breaks_is_unknown_and_silences_no_other() -> None:
    """Its exception is named, the rest still judges, and an invalid of the rest still wins."""
    fine, bad = history("1 db ok effect a"), history("1 db ok effect a\n2 db ok effect a")
    judgement = check(fine, [Broken(), EffectsOnce()])
    assert judgement.verdict is UNKNOWN
    assert judgement.findings[0].anomalies == (
        Anomalous("checker broke", None, "broken broke: ZeroDivisionError: by 0"),
    )
    assert judgement.findings[1].verdict is VALID
    assert check(bad, [Broken(), EffectsOnce()]).verdict is INVALID
