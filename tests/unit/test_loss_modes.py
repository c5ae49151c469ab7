"""How a loss mode is judged, and the page that the records make."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.lossmodes.page import PAGE, RECORDS
from tests.support.lossmodes.record import Record, dump, load, page
from tests.support.lossmodes.side import label_of
from tests.support.lossmodes.verdict import Ending, Evidence, Outcome, endings_of, has_ended, judge

TESTS = Path(__file__).parents[1] / "loss_modes"
RUNS = {"a": Ending.EFFECT}


@pytest.mark.parametrize(
    ("evidence", "outcome"),
    [
        (Evidence(effects=Counter(a=1)), Outcome.FINE),
        (Evidence(letters=Counter(a=1)), Outcome.FINE),
        (Evidence(refused=frozenset("a")), Outcome.FINE),
        (Evidence(effects=Counter(a=2)), Outcome.REPEATED),
        (Evidence(left=Counter(a=1)), Outcome.STUCK),
        (Evidence(effects=Counter(b=1)), Outcome.LOST),
        (Evidence(effects=Counter(a=1), died=True), Outcome.DIED),
        (Evidence(died=True), Outcome.LOST),
    ],
)
def test_a_task_is_judged_by_what_can_be_seen(evidence: Evidence, outcome: Outcome) -> None:
    """One effect, a letter or a refusal is fine; two are a repetition; nothing anywhere is a loss."""
    assert judge(evidence, RUNS) is outcome


def test_the_worst_of_all_tasks_counts() -> None:
    """One lost task among good ones is a loss."""
    expected = {"a": Ending.EFFECT, "b": Ending.EFFECT, "c": Ending.LETTER}
    assert judge(Evidence(effects=Counter(a=1, b=2)), expected) is Outcome.LOST


@pytest.mark.parametrize(("times", "outcome"), [(0, Outcome.FINE), (1, Outcome.LOST)])
def test_what_is_not_to_run_must_not(times: int, outcome: Outcome) -> None:
    """An effect of a revoked task means that the revoke was lost."""
    assert judge(Evidence(effects=Counter(a=times)), {"a": Ending.NOTHING}) is outcome


@pytest.mark.parametrize(
    ("evidence", "ending"),
    [
        (Evidence(effects=Counter(a=1), letters=Counter(a=1)), Ending.EFFECT),
        (Evidence(effects=Counter(a=2)), None),
        (Evidence(letters=Counter(a=1)), Ending.LETTER),
        (Evidence(left=Counter(a=1)), None),
        (Evidence(), Ending.NOTHING),
    ],
)
def test_a_letter_does_not_pass_for_an_execution(evidence: Evidence, ending: Ending | None) -> None:
    """How a task ended is told apart, so that a letter is no execution and an execution no letter."""
    assert endings_of("a", evidence) is ending
    assert has_ended(evidence, RUNS) is (ending is Ending.EFFECT)


@pytest.mark.parametrize(
    ("body", "label"),
    [(b'[["a", 1], {}, {}]', "a"), (b"{broken", "{broken"), (b"[[], {}, {}]", "[[], {}, {}]")],
)
def test_a_message_is_known_by_its_first_argument(body: bytes, label: str) -> None:
    """The label of a task message is its first argument; what is no task message is its own label."""
    assert label_of(body) == label


def test_records_survive_the_file(tmp_path: Path) -> None:
    """What is written is read again, from one file for each mode or from all in one."""
    records = [_record("b", "test_x.py::test_b"), _record("a", "test_x.py::test_a")]
    for record in records:
        record.write(tmp_path / "folder")
    (tmp_path / "all.json").write_text(dump(records))
    assert load(tmp_path / "all.json") == load(tmp_path / "folder") == [*reversed(records)]


def test_the_page_is_what_the_records_render_to() -> None:
    """``docs/loss-modes.md`` is made from ``docs/loss-modes.json``, and from nothing else."""
    assert PAGE.read_text() == page(load(RECORDS))


def test_every_record_has_a_test() -> None:
    """The catalogue names tests that are there, each once."""
    named = [record.test for record in load(RECORDS)]
    assert len(named) == len(set(named))
    assert set(named) <= set(_tests())


def test_every_test_has_a_record() -> None:
    """The catalogue holds every loss-mode test."""
    assert sorted(record.test for record in load(RECORDS)) == sorted(_tests())


def _tests() -> Iterator[str]:
    for path in TESTS.glob("test_*.py"):
        if path.name == "test_control.py":
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield f"{path.name}::{node.name}"


def _record(mode: str, test: str) -> Record:
    return Record(
        mode=mode,
        sentence="It goes wrong.",
        plain="defaults",
        outcome="lost",
        unlost="executed once",
        test=test,
        rabbitmq="4.3.6",
        celery="5.7.0",
    )
