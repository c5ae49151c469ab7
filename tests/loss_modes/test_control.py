"""The control of the loss-mode tests: with plain Celery in the place of unlost they fail."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.loss_modes.test_acks import PROCESS_KILLED
from tests.support.lossmodes.fixtures import SWAP
from tests.support.lossmodes.page import RECORDS
from tests.support.lossmodes.record import load
from tests.support.lossmodes.scenario import Stage
from tests.support.lossmodes.verdict import Outcome
from tests.support.workers import ROOT

pytestmark = pytest.mark.one_broker


@pytest.mark.long
def test_a_loss_is_noticed(stage: Stage) -> None:
    """A scenario that loses a task on plain Celery fails when plain Celery is run in the place of unlost."""
    with pytest.raises(AssertionError, match="unlost: lost"):
        replace(stage, swapped=True).prove(PROCESS_KILLED)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_loss_is_noticed(tmp_path: Path) -> None:
    """Of all loss-mode tests only those pass with plain Celery throughout for which it is fine."""
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not long", "-p", "no:cacheprovider", SWAP]
    files = [str(path) for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    subprocess.run([*command, f"--junitxml={report}", *files], cwd=ROOT, check=False, capture_output=True)
    cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314 - our own report
    passed = {
        _name(case)
        for case in cases
        if not any(case.find(end) is not None for end in ("failure", "error", "skipped"))
    }
    fine = {record.test.partition("::")[2] for record in load(RECORDS) if record.outcome == Outcome.FINE}
    assert len(cases) >= len(load(RECORDS)) / 2
    assert passed == fine & {_name(case) for case in cases}


def _name(case: ElementTree.Element) -> str:
    return str(case.get("name")).partition("[")[0]
