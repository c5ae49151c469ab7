"""The plugin works in somebody else's project, which has nothing but unlost and its own app."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.support.foreign import ROOT, make_wheel, run_pytest, write_project

pytestmark = [pytest.mark.system, pytest.mark.timeout(600), pytest.mark.usefixtures("a_broker_can_be_had")]


@pytest.fixture
def a_broker_can_be_had(broker: object) -> None:
    """Skip, or fail under ``--require-broker``, where the project could not start one either."""


@pytest.mark.one_broker
@pytest.mark.long
def test_the_example_of_the_docs_passes_and_says_what_was_injured(tmp_path: Path) -> None:
    """As written in the docs: every transfer is booked once while workers die, and the summary says so."""
    status, printed = run_pytest(sys.executable, write_project(tmp_path))
    assert status == 0, printed
    assert "test_bank.py::test_transfers_survive: seed 7: kill " in printed
    assert "0 lost, 0 twice: valid" in printed


@pytest.mark.one_broker
@pytest.mark.long
def test_a_failure_tells_the_life_of_the_task_and_how_to_repeat_it(tmp_path: Path) -> None:
    """With the ack before the work, tasks are lost: the report has seed, schedule, life, logs, command."""
    project = write_project(tmp_path)
    status, printed = run_pytest(
        sys.executable, project, "--chaos-seed=3", UNLOST_DANGEROUSLY_WITHOUT="late_ack"
    )
    assert status == 1, printed
    for part in (
        "the history is invalid",
        "lost: ",
        "confirmed, but neither executed nor dead-lettered",
        "nemesis",
        "worker-1.log:",
        "the schedule of seed 3:",
        "repeat it with: pytest test_bank.py::test_transfers_survive --chaos-seed=3",
    ):
        assert part in printed


@pytest.mark.long
@pytest.mark.one_broker
def test_hypothesis_drives_load_and_faults(tmp_path: Path) -> None:
    """The example of the docs: each example is a run of its own, and all of them hold."""
    status, printed = run_pytest(sys.executable, write_project(tmp_path), test="test_trials.py")
    assert status == 0, printed
    assert printed.count("0 lost, 0 twice: valid") >= 2, printed


@pytest.mark.long
@pytest.mark.one_broker
def test_a_run_that_nobody_checks_fails(tmp_path: Path) -> None:
    """A test that forgets ``check`` proves nothing, and is told so."""
    project = write_project(tmp_path)
    test = project / "test_bank.py"
    test.write_text(test.read_text().replace("run.check(", "print(").replace("seconds=8", "seconds=2"))
    status, printed = run_pytest(sys.executable, project)
    assert status == 1, printed
    assert "a chaos run was not checked" in printed


@pytest.mark.long
@pytest.mark.one_broker
def test_a_fresh_environment_needs_only_the_extra(tmp_path: Path) -> None:
    """A wheel with the extra ``chaos`` in a fresh environment, and the example passes."""
    wheel = make_wheel(sys.executable, tmp_path)
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    constraints = str(ROOT / "constraints.txt")
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", constraints, f"{wheel}[chaos]"], check=True)
    project = write_project(tmp_path / "project")
    status, printed = run_pytest(python, project)
    assert status == 0, printed
    assert "0 lost, 0 twice: valid" in printed
