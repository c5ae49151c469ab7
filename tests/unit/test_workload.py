"""A workload is made anew in every process of a run, and effects are read from tables and logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from unlost.chaos import Chaos
from unlost.chaos.effects import effects_in_log, effects_in_table, nanoseconds
from unlost.chaos.places import Places
from unlost.chaos.workload import Workload, make, options_of, path_of
from unlost.errors import HarnessError

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOON_NS = int(NOON.timestamp()) * 10**9


@dataclass(frozen=True, kw_only=True)
class Ticks(Workload):
    """A workload of nothing."""

    label: str
    pause: timedelta = timedelta(seconds=1)

    def publish(self, number: int) -> None:
        """Do nothing."""

    def value_of(self, _task: str, _args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """Return the number."""
        return kwargs.get("number")

    def effects(self) -> Iterator[tuple[str, int]]:
        """Have none."""
        return iter(())


def test_a_workload_travels_as_its_fields() -> None:
    """Another process makes an equal one, durations included."""
    mine = Ticks(label="x", pause=timedelta(minutes=2), rate=3, duration=timedelta(seconds=2.5))
    assert make(path_of(mine), options_of(mine)) == mine
    assert mine.messages == 8


def test_a_letter_explains_the_effect_of_its_task() -> None:
    """By default its own, or none."""
    mine = Ticks(label="x")
    assert mine.values_of_letter("t", (), {"number": "7"}) == ["7"]
    assert mine.values_of_letter("t", (), {}) == []
    assert mine.promises(7) == ["7"]


@pytest.mark.parametrize(
    ("path", "options", "why"),
    [
        ("tests.unit.test_workload:Ticks", {}, "label"),
        ("tests.unit.test_workload:Ticks", {"label": "x", "colour": 1}, "has no colour"),
        ("tests.unit.test_workload:NOON", {}, "derives from"),
        ("tests.unit.test_workload:Nothing", {}, "cannot be imported"),
        ("nowhere:Ticks", {}, "cannot be imported"),
        ("nowhere", {}, "is not of the form module:attribute"),
    ],
)
def test_a_workload_that_cannot_be_made_is_named(path: str, options: dict[str, Any], why: str) -> None:
    """The error says what is wrong with it."""
    with pytest.raises(HarnessError, match=why):
        make(path, options)


def test_a_workload_that_others_cannot_import_is_refused() -> None:
    """A class inside a function is of no use to the worker processes."""

    @dataclass(frozen=True, kw_only=True)
    class Local(Ticks):
        """Inside a function."""

    with pytest.raises(HarnessError, match="top level"):
        path_of(Local(label="x"))


def test_effects_are_read_from_a_table(tmp_path: Path) -> None:
    """One for each row, repetitions included."""
    url = f"sqlite:///{tmp_path / 'd.sqlite'}"
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("create table done (name integer, at real)"))
        rows = [{"at": NOON_NS / 1e9}] * 2
        connection.execute(text("insert into done values (1, :at)"), rows)
    engine.dispose()
    assert list(effects_in_table(url, "select name, at from done")) == [("1", NOON_NS)] * 2
    with pytest.raises(HarnessError, match="name and time"):
        list(effects_in_table(url, "select name from done"))
    with pytest.raises(HarnessError, match="cannot be read"):
        list(effects_in_table(url, "select name, at from gone"))


def test_effects_are_read_from_a_log(tmp_path: Path) -> None:
    """One for each line that matches; a log that was never written has none."""
    log = tmp_path / "done.log"
    pattern = r"^(?P<time>\S+) done (?P<value>\d+)$"
    assert list(effects_in_log(log, pattern)) == []
    log.write_text("2026-01-01T12:00:00Z done 1\nnoise\n2026-01-01T12:00:00Z done 1\n")
    assert list(effects_in_log(log, pattern)) == [("1", NOON_NS)] * 2
    with pytest.raises(HarnessError, match="no group named time"):
        list(effects_in_log(log, "(?P<value>x)"))


@pytest.mark.parametrize(
    "moment",
    [
        NOON,
        NOON.replace(tzinfo=None),
        "2026-01-01T12:00:00+00:00",
        "2026-01-01 12:00:00,000",
        NOON_NS,
        NOON_NS // 10**9,
        NOON_NS / 1e9,
        str(NOON_NS),
    ],
)
def test_a_time_may_be_written_in_many_ways(moment: object) -> None:
    """A datetime, ISO text, seconds or nanoseconds of the epoch."""
    assert nanoseconds(moment) == NOON_NS


def test_what_is_no_time_is_refused() -> None:
    """It is named."""
    with pytest.raises(HarnessError, match="'yesterday' is no time"):
        nanoseconds("yesterday")


@pytest.mark.parametrize(("workers", "concurrency"), [(0, 2), (2, 0)])
def test_a_run_with_nobody_to_work_is_refused(workers: int, concurrency: int, tmp_path: Path) -> None:
    """Before anything is started; it would wait for its workers in vain."""
    chaos = Chaos(Places({}), tmp_path, environ={})
    with pytest.raises(ValueError, match="at least one"):
        chaos.run(
            app="shop.app:app",
            workload=Ticks(label="x"),
            nemeses=[],
            workers=workers,
            concurrency=concurrency,
        )
    assert list(tmp_path.iterdir()) == []
