"""Which faults struck running tasks, how soon those recovered, and whether a run disturbed anything."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support.histories import history
from unlost.chaos.checker import (
    Active,
    Checker,
    Verdict,
    faults,
    hits,
    recoveries,
    slowest_recovery,
)
from unlost.chaos.checker.activity import lives
from unlost.errors import HarnessError

VALID, UNKNOWN = Verdict.VALID, Verdict.UNKNOWN


def judged(checker: Checker, text: str) -> tuple[Verdict, list[tuple[str, str | None]]]:
    """Return the verdict, and kind and value of each anomaly."""
    finding = checker.check(history(text))
    return finding.verdict, [(anomaly.kind, anomaly.value) for anomaly in finding.anomalies]


# --- rule 8: the run did something


def test_a_kill_while_its_task_ran_is_activity() -> None:
    """A confirmed publish and a kill of the process that ran a task make a run that proves something."""
    run = """
        1 client ok publish a
        2 worker ok start a pid=7
        3 nemesis ok kill pids=[6,7]
    """
    assert judged(Active(), run) == (VALID, [])


def test_a_crash_at_a_delivery_is_activity() -> None:
    """A process that dies before the body begins has a delivery in its hands all the same."""
    run = """
        1 client ok publish a
        2 nemesis info crash pids=[7] delivery="a"
    """
    assert judged(Active(frozenset({"crash"})), run) == (VALID, [])


IDLE = {
    "no publish": "2 worker ok start a pid=7\n3 nemesis ok kill pids=[7]",
    "unconfirmed publish": "1 client info publish a\n2 worker ok start a pid=7\n3 nemesis ok kill pids=[7]",
    "no kill": "1 client ok publish a\n2 worker ok start a pid=7",
    "kill before the start": "1 client ok publish a\n2 nemesis ok kill pids=[7]\n3 worker ok start a pid=7",
    "kill after the end": """
        1 client ok publish a
        2 worker ok start a pid=7
        3 worker ok end a pid=7
        4 nemesis ok kill pids=[7]""",
    "kill of an idle process": "1 client ok publish a\n2 worker ok start a pid=7\n3 nemesis ok kill pids=[8]",
    "kill of nobody": "1 client ok publish a\n2 worker ok start a pid=7\n3 nemesis ok kill pids=[]",
    "failed kill": "1 client ok publish a\n2 worker ok start a pid=7\n3 nemesis fail kill pids=[7]",
    "intended kill": "1 client ok publish a\n2 worker ok start a pid=7\n3 nemesis invoke kill pids=[7]",
    "another nemesis": "1 client ok publish a\n2 worker ok start a pid=7\n3 nemesis info restart_broker",
}


@pytest.mark.parametrize("run", IDLE.values(), ids=IDLE.keys())
def test_a_run_that_disturbed_nothing_is_unknown(run: str) -> None:
    """Without a confirmed publish and a kill at a running task, nothing was tested."""
    assert judged(Active(), run) == (UNKNOWN, [("idle", None)])


def test_every_nemesis_that_is_named_must_strike() -> None:
    """A broker restart strikes any running task; a nemesis that never struck is named."""
    run = """
        1 client ok publish a
        2 worker ok start a pid=7
        3 nemesis info restart_broker
    """
    assert judged(Active(frozenset({"restart_broker"})), run) == (VALID, [])
    finding = Active(frozenset({"kill", "restart_broker"})).check(history(run))
    assert (finding.verdict, [found.explanation for found in finding.anomalies]) == (
        UNKNOWN,
        ["kill never fired"],
    )


@pytest.mark.parametrize(("fault", "verdict"), [("3.4", VALID), ("3.6", UNKNOWN)])
def test_a_fault_of_the_whole_system_may_strike_between_two_tasks(fault: str, verdict: Verdict) -> None:
    """A task that has just ended shows that the system was at work; one that ended long ago does not."""
    run = f"""
        1 client ok publish a
        2 worker ok start a pid=7
        3 worker ok end a pid=7
        {fault} nemesis info restart_broker
    """
    assert judged(Active(frozenset({"restart_broker"})), run)[0] is verdict


@pytest.mark.parametrize(("effect", "verdict"), [("4", VALID), ("1.5", UNKNOWN)])
def test_a_fault_of_the_whole_system_may_strike_while_a_message_waits(effect: str, verdict: Verdict) -> None:
    """A confirmed message that had no effect yet was at stake; one that had it was not."""
    run = f"""
        1 client ok publish a
        2 nemesis info restart_broker
        {effect} db ok effect a
    """
    assert judged(Active(frozenset({"restart_broker"})), run)[0] is verdict


def test_a_kill_between_two_tasks_is_none() -> None:
    """It must have killed a task, not an idle process."""
    run = """
        1 client ok publish a
        2 worker ok start a pid=7
        3 worker ok end a pid=7
        3 nemesis info kill pids=[8]
    """
    assert judged(Active(), run)[0] is UNKNOWN


def test_a_killed_process_runs_nothing_any_more() -> None:
    """A second kill of the same pid does not strike the task that the first one ended."""
    run = history("""
        1 worker ok start a pid=7
        2 nemesis ok kill pids=[7]
        3 nemesis ok kill pids=[7]
    """)
    assert [hit.fault.index for hit in hits(run)] == [1]


def test_a_redelivered_task_can_be_struck_again() -> None:
    """Each fault strikes the attempt that runs at the time."""
    run = history("""
        1 worker ok start a pid=7
        2 nemesis ok kill pids=[7]
        3 worker ok start a pid=8
        4 nemesis info restart_broker
        5 nemesis ok restart_broker
        6 nemesis ok kill pids=[8]
    """)
    assert [(hit.fault.index, hit.value) for hit in hits(run)] == [(1, "a"), (3, "a"), (5, "a")]


def test_an_outage_is_one_fault() -> None:
    """The ok that ends an outage is no second fault, but an ok without an info before it is one."""
    run = history("""
        1 nemesis info restart_broker
        2 nemesis ok restart_broker
        3 nemesis ok restart_broker
        4 nemesis info kill pids=[1]
        5 nemesis ok kill pids=[2]
    """)
    assert [op.index for op in faults(run)] == [0, 2, 3, 4]


@pytest.mark.parametrize("types", [("info", "ok"), ("ok", "info")])
def test_an_outage_of_no_length_is_one_fault(types: tuple[str, str]) -> None:
    """An outage that began and ended at the same time is one fault, in whatever order it was merged."""
    assert len(faults(history("\n".join(f"1 nemesis {kind} restart_broker" for kind in types)))) == 1


def test_a_kill_that_found_nobody_is_no_fault() -> None:
    """A nemesis that had no process to kill did nothing."""
    assert faults(history("1 nemesis ok kill pids=[]")) == []


@pytest.mark.parametrize(
    "run",
    [
        "1 worker ok start a pid=7\n1 nemesis ok kill pids=[7]",
        "1 nemesis ok kill pids=[7]\n1 worker ok start a pid=7",
        "1 worker ok start a pid=7\n2 nemesis ok kill pids=[7]\n2 worker ok end a pid=7",
        "1 worker ok start a pid=7\n2 worker ok end a pid=7\n2 nemesis ok kill pids=[7]",
    ],
)
def test_a_fault_at_the_very_time_of_a_start_or_end_strikes(run: str) -> None:
    """Start and end belong to the time in which a task runs, in whatever order they were merged."""
    assert [hit.value for hit in hits(history(run))] == ["a"]


def test_a_fault_strikes_a_value_once() -> None:
    """Two processes that run the same task at once, a lease having expired, are one interrupted task."""
    run = history(
        "1 w ok start a pid=7\n2 w ok start a pid=8\n3 nemesis ok kill pids=[7,8]\n4 db ok effect a"
    )
    assert len(hits(run)) == len(recoveries(run)) == 1


def test_pids_that_are_no_list_are_an_error() -> None:
    """A nemesis that does not say whom it killed is a mistake of the harness, not an idle run."""
    with pytest.raises(HarnessError, match="must list its pids"):
        faults(history("1 nemesis ok kill pids=7"))


# --- recovery


def test_recovery_is_the_time_from_the_fault_to_the_first_effect() -> None:
    """Each fault that interrupted a task is measured to the first effect of that task."""
    run = history("""
        1 worker ok start a pid=7
        2 nemesis ok kill pids=[7]
        3 worker ok start a pid=8
        4.5 db ok effect a
        9 db ok effect a
    """)
    assert [(one.fault.index, one.value, one.took) for one in recoveries(run)] == [
        (1, "a", timedelta(seconds=2.5))
    ]
    assert slowest_recovery(run) == timedelta(seconds=2.5)


def test_a_broker_restart_interrupts_every_running_task() -> None:
    """The slowest of the tasks that ran when the broker went down counts, from that moment."""
    run = history("""
        1 worker ok start a pid=7
        1 worker ok start b pid=8
        2 nemesis info restart_broker
        5 nemesis ok restart_broker
        6 db ok effect a
        8 db ok effect b
    """)
    assert [one.took.total_seconds() for one in recoveries(run)] == [4, 6]
    assert slowest_recovery(run) == timedelta(seconds=6)


UNTOUCHED = {
    "effect before the fault": "1 w ok start a pid=7\n2 db ok effect a\n3 nemesis ok kill pids=[7]",
    "effect before and again after": (
        "1 w ok start a pid=7\n2 db ok effect a\n3 nemesis ok kill pids=[7]\n4 db ok effect a"
    ),
    "effect never came": "1 w ok start a pid=7\n3 nemesis ok kill pids=[7]",
    "ended before": "1 w ok start a pid=7\n2 w ok end a pid=7\n3 nemesis ok kill pids=[7]\n4 db ok effect a",
    "another process": "1 w ok start a pid=7\n3 nemesis ok kill pids=[8]\n4 db ok effect a",
    "not started": "1 client ok publish a\n3 nemesis info restart_broker\n4 db ok effect a",
}


@pytest.mark.parametrize("run", UNTOUCHED.values(), ids=UNTOUCHED.keys())
def test_a_task_that_no_fault_kept_from_its_effect_did_not_recover(run: str) -> None:
    """Only a task that ran at the fault and took effect later has recovered."""
    assert recoveries(history(run)) == []
    assert slowest_recovery(history(run)) is None


# --- the life of a value


def test_a_life_shows_the_faults_that_struck_a_running_body() -> None:
    """Those and no other."""
    run = history("""
        1 client ok publish a
        2 worker ok start a pid=7
        3 nemesis ok kill pids=[7]
        4 nemesis ok kill pids=[8]
    """)
    assert [op.index for op in lives(run, {"a"})["a"]] == [0, 1, 2]


def test_a_life_without_a_start_shows_the_first_fault_after_it() -> None:
    """A message that was acked early dies with a process that never began its body."""
    run = history("""
        1 nemesis ok kill pids=[7]
        2 client ok publish a
        3 nemesis ok kill pids=[8]
        4 nemesis ok kill pids=[9]
    """)
    assert [op.index for op in lives(run, {"a"})["a"]] == [1, 2]


def test_a_life_that_no_fault_followed_is_its_own_operations() -> None:
    """What was lost without any fault accuses none."""
    run = history("1 nemesis ok kill pids=[7]\n2 client ok publish a")
    assert [op.index for op in lives(run, {"a"})["a"]] == [1]
