"""The same seed makes the same schedule, and a nemesis that makes no sense is refused."""

from __future__ import annotations

import inspect
from datetime import timedelta

import pytest

from unlost.chaos import nemesis
from unlost.chaos.nemesis import CrashAt, KillWorkers, LinkFault, Nemesis, RestartBroker, Schedule

SPAN = timedelta(seconds=60)
SECOND = timedelta(seconds=1)

ALL: list[type[Nemesis]] = [
    each
    for each in (getattr(nemesis, name) for name in nemesis.__all__)
    if inspect.isclass(each) and issubclass(each, Nemesis) and each is not Nemesis
]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_the_same_seed_draws_the_same(kind: type[Nemesis]) -> None:
    """Two schedules of one seed are equal, and of another seed they differ."""
    schedules = [Schedule.draw([kind()], seed, SPAN) for seed in (7, 7, 8)]
    assert schedules[0] == schedules[1] != schedules[2]
    assert schedules[0].lines() == schedules[1].lines()
    assert schedules[0].parts[0][1]


def test_every_nemesis_has_a_name_of_its_own() -> None:
    """Operations in the history tell them apart."""
    assert len({kind.name for kind in ALL}) == len(ALL) >= 17


def test_another_nemesis_does_not_change_the_schedule_of_the_first() -> None:
    """So that a failing run can be made simpler."""
    alone = Schedule.draw([KillWorkers(every=SECOND)], 7, SPAN)
    together = Schedule.draw([KillWorkers(every=SECOND), RestartBroker(times=2)], 7, SPAN)
    assert together.parts[0] == alone.parts[0]


def test_every_is_the_mean_of_the_pauses() -> None:
    """Over a long load there are about as many as the mean says, in order, within the load."""
    (injuries,) = (part[1] for part in Schedule.draw([KillWorkers(every=SECOND)], 7, SPAN * 10).parts)
    moments = [injury.at for injury in injuries]
    assert 500 < len(moments) < 700
    assert moments == sorted(moments)
    assert moments[-1] < SPAN * 10
    assert {injury.what for injury in injuries} == {"child", "parent", "group"}


def test_times_are_spread_over_the_load() -> None:
    """Each has a part of the load for itself, away from begin and end."""
    injuries = RestartBroker(times=3).schedule("7", SPAN)
    parts = [int((injury.at / SPAN - 0.1) / (0.7 / 3)) for injury in injuries]
    assert parts == [0, 1, 2]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: KillWorkers(targets=("cousin",)), "child, parent, group"),
        (lambda: CrashAt(points=("lunch",)), "acquiring, acquired"),
        (lambda: LinkFault(links=("moon",)), "worker, publisher, store"),  # type: ignore[arg-type]
        (lambda: LinkFault(faults=()), "latency"),
        (lambda: KillWorkers(every=SECOND, times=2).schedule("1", SPAN), "not both"),
        (lambda: KillWorkers(times=0).schedule("1", SPAN), "more than zero"),
        (lambda: KillWorkers(every=timedelta(0)).schedule("1", SPAN), "more than zero"),
    ],
)
def test_what_makes_no_sense_is_refused(make: object, why: str) -> None:
    """The error names what may be given."""
    with pytest.raises(ValueError, match=why):
        make()  # type: ignore[operator]
