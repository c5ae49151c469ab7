"""Hypothesis finds the run that breaks a system, and makes its workload and schedule as small as they go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import find, given
from hypothesis import strategies as st

from unlost.chaos.checker import NothingLost, Verdict
from unlost.chaos.history import History, Op, OpType
from unlost.chaos.nemesis import KillWorkers, RestartBroker
from unlost.chaos.strategies import Trial, schedules, trials
from unlost.chaos.workload import Workload

SECOND = timedelta(seconds=1)
SPAN = 10 * SECOND
NEMESES = [RestartBroker(), KillWorkers(targets=("child", "parent"))]


@dataclass(frozen=True, kw_only=True)
class Numbers(Workload):
    """So many messages a second that do nothing."""

    def publish(self, number: int) -> None:
        """Not published anywhere."""

    def value_of(self, _task: str, _args: Any, _kwargs: Any) -> str | None:
        """Return nothing."""
        return None

    def effects(self) -> Iterator[tuple[str, int]]:
        """Return nothing."""
        return iter(())


WORKLOADS = st.builds(
    Numbers, rate=st.integers(1, 20), duration=st.integers(1, 10).map(lambda seconds: seconds * SECOND)
)


def simulated(trial: Trial[Numbers], *, late_ack: bool) -> History:
    """Run a worker that does one message after the other, each for as long as there is until the next.

    A kill of a child ends the body; whether the message comes back is a matter of when it was acked.
    """
    each = SECOND / trial.workload.rate
    kills = [
        injury.at
        for nemesis, injuries in trial.schedule.parts
        for injury in injuries
        if nemesis.name == "kill" and injury.what == "child"
    ]
    ops: list[Op] = []

    def note(at: timedelta, process: str, kind: OpType, f: str, value: str, **extra: Any) -> None:
        ops.append(Op(len(ops), int(at / timedelta(microseconds=1)) * 1000, process, kind, f, value, extra))

    for number in range(trial.workload.messages):
        begin = number * each
        note(begin, "client", "ok", "publish", str(number))
        if late_ack or not any(begin < kill < begin + each for kill in kills):
            note(begin + each, "worker", "ok", "effect", str(number))
    note(trial.workload.duration + SECOND, "drain", "ok", "residual", "work", messages=0)
    return History.merged(ops)


def verdict(trial: Trial[Numbers], *, late_ack: bool) -> Verdict:
    """Judge a simulated run."""
    return NothingLost().check(simulated(trial, late_ack=late_ack)).verdict


@given(trials(WORKLOADS, NEMESES))
def test_nothing_is_found_where_nothing_is_wrong(trial: Trial[Numbers]) -> None:
    """Acked when it is done, no message is lost under any schedule."""
    assert verdict(trial, late_ack=True) is Verdict.VALID


def test_workload_and_schedule_shrink_together() -> None:
    """Acked at once, a message is lost: one kill of one child is enough, of the shortest, slowest load."""
    smallest = find(
        trials(WORKLOADS, NEMESES), lambda trial: verdict(trial, late_ack=False) is Verdict.INVALID
    )
    assert (smallest.workload.rate, smallest.workload.duration) == (1, SECOND)
    ((nemesis, injuries),) = smallest.schedule.parts
    assert [(nemesis.name, each.what, each.draw) for each in injuries] == [("kill", "child", 0.0)]
    assert injuries[0].at == 0.1 * SECOND
    assert str(smallest.schedule) == "the schedule"


@given(schedules(NEMESES, SPAN, most=3))
def test_schedules_are_in_order_and_within_the_load(schedule: Any) -> None:
    """At most so many injuries, each of a kind that its nemesis has, and no nemesis without one."""
    assert sum(len(injuries) for _, injuries in schedule.parts) <= 3
    for nemesis, injuries in schedule.parts:
        moments = [each.at for each in injuries]
        assert moments == sorted(moments)
        assert moments
        assert SPAN * 0.1 <= moments[0] <= moments[-1] <= SPAN * 0.8
        assert {each.what for each in injuries} <= set(nemesis.kinds())
    assert len(schedule.lines()) == sum(len(injuries) for _, injuries in schedule.parts)


def test_what_makes_no_sense_is_refused() -> None:
    """No nemesis, or no time."""
    for arguments in (([], SPAN), (NEMESES, timedelta(0))):
        with pytest.raises(ValueError, match="at least one nemesis"):
            schedules(*arguments)
