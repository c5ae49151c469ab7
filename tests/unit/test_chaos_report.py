"""A report shows what a run came to, and why it did not pass."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rich.console import Console

from tests.support.histories import history
from unlost.chaos.checker import (
    Active,
    Anomalous,
    Checker,
    EffectsOnce,
    Finding,
    Judgement,
    NothingFromNowhere,
    NothingLost,
    Verdict,
    check,
)
from unlost.chaos.history import History
from unlost.chaos.report import Figures, exit_status, explain, figures, table
from unlost.errors import HarnessError

RULES: list[Checker] = [NothingLost(), NothingFromNowhere(), EffectsOnce(), Active()]
PASSED = Figures(
    published=2,
    confirmed=2,
    executed=1,
    effects=1,
    lost=0,
    duplicate_effects=0,
    dead_lettered=1,
    kills=1,
    broker_restarts=1,
    faults=2,
    slowest_recovery_s=1.25,
    verdict=Verdict.VALID,
)
RUN = history("""
    1 client ok publish a
    1 client ok publish b
    2 worker ok start a pid=7
    2 nemesis ok kill pids=[7]
    3 nemesis info restart_broker
    3.1 nemesis ok restart_broker
    3.25 db ok effect a
    4 dlq ok dead b
    9 drain ok residual q messages=0
""")


def test_figures_count_the_run() -> None:
    """Every figure is taken from the history, and the verdict from the judgement."""
    assert figures(check(RUN, RULES), RUN) == PASSED


def test_figures_do_not_depend_on_which_checkers_were_asked() -> None:
    """A loss shows even if nobody asked for losses; only the verdict is that of the checkers."""
    run = history("1 client ok publish a\n9 drain ok residual q messages=0")
    shown = figures(check(run, [EffectsOnce()]), run)
    assert (shown.lost, shown.verdict) == (1, Verdict.VALID)


def test_messages_that_promise_several_effects_are_counted_as_messages() -> None:
    """With two effects a message, a message of which one is missing is not executed."""
    run = history("""
        1 client ok publish 1/charge
        1 client ok publish 1/receipt
        1 client ok publish 2/charge
        1 client ok publish 2/receipt
        2 db ok effect 1/charge
        2 db ok effect 1/receipt
        3 db ok effect 2/charge
        9 drain ok residual q messages=0
    """)
    shown = figures(check(run, RULES), run, per_message=2)
    assert (shown.published, shown.confirmed, shown.executed, shown.effects, shown.lost) == (2, 2, 1, 3, 1)


def test_a_message_promises_something() -> None:
    """Fewer than one effect a message is a mistake of the caller."""
    with pytest.raises(ValueError, match="at least one effect"):
        figures(check(RUN, RULES), RUN, per_message=0)


def test_a_history_that_cannot_be_counted_has_no_figures() -> None:
    """Rather than show zeros, the report says that the harness went wrong."""
    run = history("1 client ok publish")
    with pytest.raises(HarnessError, match="no value"):
        figures(check(run, RULES), run)


def test_nothing_is_called_lost_while_queues_may_hold_it() -> None:
    """Without a proof of empty queues, what is missing is not counted as lost, and the verdict is unknown."""
    run = history("1 client ok publish a")
    shown = figures(check(run, RULES), run)
    assert (shown.lost, shown.verdict, shown.slowest_recovery_s) == (0, Verdict.UNKNOWN, None)


def test_the_line_for_machines_holds_exactly_the_figures() -> None:
    """The JSON line has the documented names, in their order, on one line."""
    line = PASSED.to_json_line()
    assert "\n" not in line
    assert list(json.loads(line).items()) == [
        ("published", 2),
        ("confirmed", 2),
        ("executed", 1),
        ("effects", 1),
        ("lost", 0),
        ("duplicate_effects", 0),
        ("dead_lettered", 1),
        ("kills", 1),
        ("broker_restarts", 1),
        ("faults", 2),
        ("slowest_recovery_s", 1.25),
        ("verdict", "valid"),
    ]


@pytest.mark.parametrize(
    ("verdict", "lost", "duplicates", "faults", "status"),
    [
        (Verdict.VALID, 0, 0, 1, 0),
        (Verdict.VALID, 0, 0, 0, 3),
        (Verdict.UNKNOWN, 0, 0, 1, 3),
        (Verdict.INVALID, 0, 0, 1, 1),
        (Verdict.INVALID, 0, 0, 0, 1),
        (Verdict.VALID, 1, 0, 1, 1),
        (Verdict.VALID, 0, 1, 1, 1),
        (Verdict.UNKNOWN, 0, 1, 1, 1),
    ],
)
def test_exit_status(verdict: Verdict, lost: int, duplicates: int, faults: int, status: int) -> None:
    """0 only for a valid run with faults and without losses or duplicates; 1 for an anomaly; else 3."""
    shown = replace(PASSED, verdict=verdict, lost=lost, duplicate_effects=duplicates, faults=faults)
    assert exit_status(shown) == status


def printed(shown: Figures) -> list[str]:
    """Return the table as it appears on a terminal of 80 columns, without colours."""
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(table(shown, "what happened"))
    return capture.get().splitlines()


def test_the_table_shows_every_figure() -> None:
    """People see the title, each figure by name, seconds with their unit, and the verdict."""
    lines = printed(PASSED)
    cells = dict([cell.strip() for cell in line.strip("│").split("│")] for line in lines if "│" in line)
    assert lines[0].strip() == "what happened"
    assert cells["duplicate effects"] == "0"
    assert cells["slowest recovery"] == "1.25 s"
    assert cells["verdict"] == "valid"
    assert len(cells) == 12


def test_the_table_shows_what_could_not_be_measured() -> None:
    """No recovery is a dash, not a zero."""
    assert any(
        "slowest recovery" in line and " - " in line
        for line in printed(replace(PASSED, slowest_recovery_s=None))
    )


def test_the_table_marks_what_speaks_against_a_pass() -> None:
    """A loss and a verdict that is not valid are red; the same figures of a good run are not."""
    good = [row.style for row in table(PASSED, "").rows]
    bad = [row.style for row in table(replace(PASSED, lost=1, verdict=Verdict.UNKNOWN), "").rows]
    assert (good[4], good[11]) == (None, "bold green")
    assert (bad[4], bad[11]) == ("red", "bold red")


def test_a_run_that_passed_has_nothing_to_explain() -> None:
    """No anomaly, no line."""
    assert explain(check(RUN, RULES)) == []


def test_anomalies_are_explained_by_their_lives() -> None:
    """Each kind has its count and a timeline of its values, in seconds since the run began."""
    run = history("""
        10 client invoke publish b
        10.5 client ok publish a
        11 worker-1 ok start a pid=7
        12.25 nemesis ok kill pids=[7]
        13 db ok effect b
        19 drain ok residual q messages=0
    """)
    assert explain(check(run, RULES)) == [
        "lost: 1",
        "  a: confirmed, but neither executed nor dead-lettered",
        "        +0.500 s  client    publish  ok",
        "        +1.000 s  worker-1  start    ok",
        "        +2.250 s  nemesis   kill     ok",
    ]


def test_only_the_first_of_a_kind_are_told_in_full() -> None:
    """The count is of all of them, the lives are of a few, and the rest is said to be left out."""
    many = tuple(Anomalous("lost", str(number), f"{number} is lost") for number in range(5))
    whole_run = Anomalous("undrained", None, "no queue was counted")
    judgement = Judgement((Finding("a", Verdict.UNKNOWN, many), Finding("b", Verdict.UNKNOWN, (whole_run,))))
    assert explain(judgement, limit=2) == [
        "lost: 5",
        "  0 is lost",
        "  1 is lost",
        "  and 3 more",
        "undrained: 1",
        "  no queue was counted",
    ]


def test_an_empty_history_can_be_explained() -> None:
    """A run that recorded nothing is told as such."""
    assert explain(check(History(), [NothingLost()])) == [
        "undrained: 1",
        "  no queue was counted after the run",
    ]
