"""Strategies of hypothesis: a workload and what injures the system meanwhile, found and shrunk together.

::

    @given(trials(st.builds(Orders, rate=st.just(20), duration=SPANS), [KillWorkers(), RestartBroker()]))
    def test_orders_survive(trial):
        run = chaos.run(app="shop.app:app", workload=trial.workload, nemeses=trial.schedule)
        run.check(NothingLost(), EffectsOnce())

Needs hypothesis. Smaller is: fewer injuries, earlier, of a nemesis and a kind that come first, at the first
target; and whatever is smaller for the workload's fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

from hypothesis import strategies as st

from unlost.chaos.nemesis import Injury, Nemesis, Schedule
from unlost.chaos.nemesis.base import FIRST, LAST
from unlost.chaos.workload import Workload

W = TypeVar("W", bound=Workload)

#: More injuries than these are rarely needed to show a fault, and each costs time.
MOST = 5

_MS = timedelta(milliseconds=1)


@dataclass(frozen=True, kw_only=True)
class Trial(Generic[W]):
    """One run to make.

    Attributes:
        workload: What to put through.
        schedule: What injures the system meanwhile.
    """

    workload: W
    schedule: Schedule


def schedules(
    nemeses: Sequence[Nemesis], span: timedelta, *, most: int = MOST
) -> st.SearchStrategy[Schedule]:
    """Return schedules; ``every`` and ``times`` of the nemeses do not count.

    A nemesis that does not strike is not part of the schedule: no check asks it to have struck.

    Args:
        nemeses: What may strike, the simplest first.
        span: How long the load takes.
        most: Injuries of all of them together.

    Raises:
        ValueError: There is no nemesis to draw, or no time.
    """
    if not nemeses or span < _MS or most < 0:
        raise ValueError("schedules need at least one nemesis, a time of at least 1 ms, and most >= 0")
    strikes = st.sampled_from(range(len(nemeses))).flatmap(
        lambda number: st.tuples(st.just(number), _injuries(nemeses[number], span))
    )
    return st.lists(strikes, max_size=most).map(lambda drawn: _schedule(nemeses, drawn))


def trials(
    workloads: st.SearchStrategy[W], nemeses: Sequence[Nemesis], *, most: int = MOST
) -> st.SearchStrategy[Trial[W]]:
    """Return workloads, each with a schedule for as long as it takes.

    Args:
        workloads: ``st.builds`` of a workload's class, for instance.
        nemeses: What may strike, the simplest first.
        most: Injuries of all of them together.

    Raises:
        ValueError: There is no nemesis to draw.
    """
    return workloads.flatmap(
        lambda workload: st.builds(
            Trial, workload=st.just(workload), schedule=schedules(nemeses, workload.duration, most=most)
        )
    )


def _injuries(nemesis: Nemesis, span: timedelta) -> st.SearchStrategy[Injury]:
    first, last = (int(span * part / _MS) for part in (FIRST, LAST))
    moments = st.integers(first, last).map(lambda ms: ms * _MS)
    kinds = list(dict.fromkeys(nemesis.kinds()))
    return st.builds(Injury, moments, st.sampled_from(kinds), st.floats(0, 1, exclude_max=True))


def _schedule(nemeses: Sequence[Nemesis], drawn: Sequence[tuple[int, Injury]]) -> Schedule:
    parts = (
        (nemesis, tuple(sorted((injury for of, injury in drawn if of == number), key=lambda each: each.at)))
        for number, nemesis in enumerate(nemeses)
    )
    return Schedule(None, tuple((nemesis, injuries) for nemesis, injuries in parts if injuries))
