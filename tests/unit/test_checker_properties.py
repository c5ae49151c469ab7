"""What holds for every history, and how the work grows with its length."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlost.chaos.checker import (
    Active,
    Checker,
    EffectsOnce,
    ExclusiveEnd,
    NothingFromNowhere,
    NothingLost,
    Verdict,
    check,
    slowest_recovery,
)
from unlost.chaos.history import History, Op, OpType

VALID, INVALID, UNKNOWN = Verdict.VALID, Verdict.INVALID, Verdict.UNKNOWN

# --- properties

ORDER: list[Verdict] = [VALID, UNKNOWN, INVALID]
RULES: list[Checker] = [
    NothingLost(),
    NothingFromNowhere(),
    EffectsOnce(),
    ExclusiveEnd(),
    Active(),
    Active(frozenset({"kill", "restart_broker"})),
]
TYPES: list[OpType] = ["invoke", "ok", "fail", "info"]
TASK_OPS = ["publish", "start", "end", "effect", "dead", "redrive"]
PIDS = st.integers(1, 3)


def an_op(
    f: st.SearchStrategy[str], value: st.SearchStrategy[str | None], extra: Any
) -> st.SearchStrategy[Op]:
    """Return operations within few moments and processes, so that they collide."""
    return st.builds(
        Op, st.just(0), st.integers(0, 4), st.sampled_from("pqr"), st.sampled_from(TYPES), f, value, extra
    )


ANY_OP = st.one_of(
    an_op(st.sampled_from(TASK_OPS), st.sampled_from("abc"), st.fixed_dictionaries({"pid": PIDS})),
    an_op(st.just("kill"), st.none(), st.fixed_dictionaries({"pids": st.lists(PIDS)})),
    an_op(st.just("restart_broker"), st.none(), st.just({})),
    an_op(
        st.sampled_from(["residual", "drain"]),
        st.just("q"),
        st.fixed_dictionaries({"messages": st.integers(0, 1)}),
    ),
)
RUNS = st.lists(ANY_OP, max_size=25).map(History.merged)


@given(RUNS, st.data())
def test_the_order_of_equal_times_changes_no_verdict(run: History, data: st.DataObject) -> None:
    """Files of different processes may be merged in any order among equal times."""
    shuffled: list[Op] = []
    for _, group in groupby(run, key=lambda op: op.time_ns):
        together = list(group)
        processes = data.draw(st.permutations([op.process for op in together]))
        lanes = {process: iter([op for op in together if op.process == process]) for process in processes}
        shuffled.extend(next(lanes[process]) for process in processes)
    verdicts = [rule.check(run).verdict for rule in RULES]
    assert [rule.check(History.merged(shuffled)).verdict for rule in RULES] == verdicts
    assert slowest_recovery(History.merged(shuffled)) == slowest_recovery(run)


@given(RUNS, st.integers(0, 5), st.data())
def test_an_effect_of_a_confirmed_value_never_makes_a_loss_worse(
    run: History, time_ns: int, data: st.DataObject
) -> None:
    """One more effect of something confirmed cannot turn NothingLost towards invalid."""
    confirmed = sorted(run.values("publish", "ok")) or ["a"]
    effect = Op(0, time_ns, "db", "ok", "effect", data.draw(st.sampled_from(confirmed)))
    before, after = (NothingLost().check(History.merged(ops)).verdict for ops in (run, [*run, effect]))
    assert ORDER.index(after) <= ORDER.index(before)


@given(RUNS, st.data())
def test_repeating_an_effect_is_always_invalid(run: History, data: st.DataObject) -> None:
    """However a history looks, an effect that is in it twice is an anomaly."""
    effect = data.draw(st.sampled_from([*run.of("effect", "ok"), Op(0, 1, "db", "ok", "effect", "a")]))
    assert EffectsOnce().check(History.merged([*run, effect, effect])).verdict is INVALID


@given(RUNS)
def test_a_confirm_without_any_end_is_never_valid(run: History) -> None:
    """However a history looks, a confirmed value that appears nowhere else keeps NothingLost from valid."""
    confirm = Op(0, 0, "client", "ok", "publish", "vanished")
    finding = NothingLost().check(History.merged([*run, confirm]))
    assert finding.verdict is not VALID
    assert "vanished" in [anomaly.value for anomaly in finding.anomalies]


@given(RUNS)
def test_a_verdict_is_valid_exactly_if_nothing_speaks_against_it(run: History) -> None:
    """No finding is a pass with anomalies, and none fails without one."""
    for rule in RULES:
        finding = rule.check(run)
        assert (finding.verdict is VALID) == (not finding.anomalies)


# --- size


def large(tasks: int, *, healthy: bool) -> History:
    """Return five operations a task, or five of a task that goes wrong, and a kill for each tenth task."""
    kinds: Sequence[tuple[OpType, str]] = [("invoke", "publish"), ("ok", "publish"), ("ok", "start")]
    kinds = [*kinds, ("ok", "effect"), ("ok", "end" if healthy else "effect")]
    ops = []
    for task in range(tasks):
        values = [str(task)] * 5 if healthy else [str(task)] * 3 + [f"x{task}"] * 2
        pid = {"pid": task % 16}
        ops += [Op(0, task * 10 + n, "p", *kind, values[n], pid) for n, kind in enumerate(kinds)]
        if task % 10 == 0:
            ops.append(Op(0, task * 10 + 3, "nemesis", "ok", "kill", None, {"pids": [task % 16]}))
    ops.append(Op(0, tasks * 10, "drain", "ok", "residual", "q", {"messages": 0}))
    return History.merged(ops)


def lines_run(work: Callable[[], object]) -> int:
    """Count the lines of Python that a call executes; loops in comprehensions count each round."""
    lines = 0

    def trace(frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("healthy", [True, False])
def test_the_work_grows_with_the_history_and_no_faster(healthy: bool) -> None:
    """Four times the operations take four times the steps, also where every task has anomalies."""
    small, big = large(200, healthy=healthy), large(800, healthy=healthy)
    assert lines_run(lambda: check(big, RULES)) < 4.4 * lines_run(lambda: check(small, RULES))


def test_slices_of_anomalies_together_are_no_larger_than_the_history() -> None:
    """An anomaly holds the operations on its value, found by index, and no copy of the rest."""
    run = large(2000, healthy=False)
    for rule in (NothingLost(), NothingFromNowhere(), EffectsOnce()):
        finding = rule.check(run)
        assert len(finding.anomalies) == 2000
        assert sum(len(anomaly.ops) for anomaly in finding.anomalies) <= len(run)


def test_two_hundred_thousand_operations_are_checked() -> None:
    """A long run is judged as a short one is."""
    run = large(40_000, healthy=True)
    assert len(run) > 200_000
    judgement = check(run, [NothingLost(), NothingFromNowhere(), EffectsOnce(), ExclusiveEnd(), Active()])
    assert judgement.verdict is VALID
    assert judgement.findings[0].figures["executed"] == 40_000
    assert judgement.findings[-1].figures == {"faults": 4_000, "interrupted": 4_000}
