"""What a run leaves behind for people and for the record: a page, a failure's report, a line of evidence."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.histories import history
from unlost.chaos import evidence
from unlost.chaos.checker import NothingLost, check
from unlost.chaos.failure import explain_failure
from unlost.chaos.history import History
from unlost.chaos.nemesis import KillWorkers, Schedule
from unlost.chaos.picture import page, picture
from unlost.chaos.report import figures, injuries
from unlost.cli import main
from unlost.errors import HarnessError

RUN = history("""
    0 run info schedule seed=7 lines=["0.5s","kill<child>"]
    1 client ok publish a
    1 client ok publish b
    2 worker ok start a pid=7
    2 nemesis info kill pids=[7] target="child"
    3 nemesis info kill_broker target="<x>"
    5 nemesis ok kill_broker target="<x>"
    6 db ok effect a
    9 drain ok residual q messages=0
""")
JUDGEMENT = check(RUN, [NothingLost()])
SCHEDULE = Schedule.draw([KillWorkers()], 7, timedelta(minutes=1))


def test_the_page_needs_nothing_else_and_shows_everything() -> None:
    """One file without a link: verdict, figures, picture, what is wrong, the schedule; all of it escaped."""
    shown = page(RUN, JUDGEMENT, figures(JUDGEMENT, RUN), "<my> app")
    assert "http://" not in shown
    assert "https://" not in shown
    for part in ("&lt;my&gt; app", "invalid", "b: confirmed, but neither", "kill&lt;child&gt;", "<svg"):
        assert part in shown
    assert "<x>" not in shown


def test_the_picture_has_a_band_for_each_fault_and_a_line_for_each_figure() -> None:
    """The outage is a band of two of nine seconds; a kill is a thin one; four lines are drawn."""
    svg = ET.fromstring(picture(RUN))  # noqa: S314 - our own
    bands = [each for each in svg.iter("rect") if each.find("title") is not None]
    told = {each.findtext("title"): float(each.attrib["width"]) for each in bands}
    assert told["kill child"] == 1.5
    assert told["kill_broker <x>"] == pytest.approx((1000 - 60 - 10) * 2 / 9, abs=0.2)
    assert len(list(svg.iter("polyline"))) == 4


def test_an_empty_history_has_a_picture() -> None:
    """Nothing happened, and that can be drawn."""
    ET.fromstring(picture(History()))  # noqa: S314 - our own


@dataclass
class Told:
    """A run to be told."""

    folder: Path
    schedule: Schedule = SCHEDULE
    repeat: str = "pytest test_it.py --chaos-seed=7"
    broker_log: str = "the node:\nall is well"

    @property
    def injuries(self) -> dict[str, int]:
        """Return what struck."""
        return dict(injuries(RUN))


def test_a_failure_is_told_with_the_logs_of_its_time(tmp_path: Path) -> None:
    """Only lines of the time at which the lost task lived are shown, with those that continue them."""
    (tmp_path / "logs").mkdir()
    stamps = [datetime.fromtimestamp(second).strftime("[%Y-%m-%d %H:%M:%S,000: INFO]") for second in (1, 60)]
    log = f"{stamps[0]} near\n  continued\n{stamps[1]} far\n  away\n"
    (tmp_path / "logs" / "worker-1.log").write_text(log)
    told = explain_failure(Told(tmp_path), JUDGEMENT)
    for part in (
        "the history is invalid",
        "b: confirmed, but neither executed nor dead-lettered",
        "near\n    continued",
        "all is well",
        "injured: kill 1, kill_broker 1",
        "the schedule of seed 7:",
        "repeat it with: pytest test_it.py --chaos-seed=7",
        str(tmp_path),
    ):
        assert part in told
    assert "far" not in told


def test_a_record_grows_and_adds_up(tmp_path: Path) -> None:
    """Each run appends a line with the documented names; the sum is valid only if every run is."""
    record = tmp_path / "evidence" / "record.jsonl"
    run = evidence.Evidence(
        figures=figures(JUDGEMENT, RUN),
        injuries=injuries(RUN),
        seeds=[7],
        broker="4.3.6 (docker, 1 node)",
        seconds=9.4,
        command="unlost chaos run",
    )
    run.append_to(record)
    run.append_to(record)
    first, _ = evidence.read(record)
    assert first["versions"]["rabbitmq"] == "4.3.6 (docker, 1 node)"
    assert {"confirmed", "executed", "kills", "broker_faults", "lost", "duplicate_effects"} <= first.keys()
    assert {"dead_lettered", "seeds", "versions", "command"} <= first.keys()
    summed = evidence.total(evidence.read(record))
    assert (summed["runs"], summed["verdict"]) == (2, "invalid")
    assert (summed["confirmed"], summed["lost"], summed["kills"], summed["broker_faults"]) == (4, 2, 2, 2)
    assert evidence.total([{**first, "verdict": "valid"}])["verdict"] == "valid"
    assert evidence.total([])["verdict"] == "unknown"
    assert CliRunner().invoke(main, ["chaos", "total", str(record)]).exit_code == 1


@pytest.mark.parametrize(
    "content",
    [
        b"no json",
        b"[1]",
        b"1",
        b'{"verdict": "valid"}',
        b"\xff",
        b'{"verdict": "valid", "confirmed": "many"}',
    ],
)
def test_a_record_that_is_none_is_an_error(tmp_path: Path, content: bytes) -> None:
    """File and line are named."""
    (tmp_path / "x").write_bytes(b"\n" + content + b"\n")
    with pytest.raises(HarnessError, match="/x, line 2, is no run that `unlost chaos run --record` wrote"):
        evidence.read(tmp_path / "x")


def test_a_record_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """A folder is no record."""
    with pytest.raises(HarnessError, match="cannot read the record"):
        evidence.read(tmp_path)


def test_a_history_is_judged_from_its_file(tmp_path: Path) -> None:
    """``unlost chaos check`` says what is wrong, writes the page, and exits with 1."""
    lines = "".join(f"{op.to_json()}\n" for op in RUN)
    (tmp_path / "h.jsonl").write_text(lines)
    page_file = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["chaos", "check", str(tmp_path / "h.jsonl"), "--html", str(page_file)])
    assert done.exit_code == 1, done.output
    assert "b: confirmed, but neither" in done.output
    assert json.loads(done.output.splitlines()[-1])["lost"] == 1
    assert "<svg" in page_file.read_text()
