"""What a failed check tells: the life of what went wrong, the logs around it, and how to repeat it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from unlost.chaos.checker import Anomalous, Judgement, Verdict
from unlost.chaos.nemesis import Schedule
from unlost.chaos.report import explain

#: How much of the logs to show before and after the life of an anomaly.
AROUND = timedelta(seconds=1)
_MOST_LINES = 20
_MOST_PLANNED = 40
_STAMP = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3})")


class Told(Protocol):
    """What a run must show for its failure to be told."""

    @property
    def schedule(self) -> Schedule:
        """What the nemeses were to do."""

    @property
    def folder(self) -> Path:
        """History and logs."""

    @property
    def repeat(self) -> str:
        """The command that repeats it."""

    @property
    def broker_log(self) -> str:
        """The end of the log of each node."""

    @property
    def injuries(self) -> Mapping[str, int]:
        """How often each nemesis struck."""


def explain_failure(run: Told, judgement: Judgement) -> str:
    """Return the report of a check that did not pass."""
    return "\n".join(_lines(run, judgement))


def _lines(run: Told, judgement: Judgement) -> Iterator[str]:
    proves = "proves nothing" if judgement.verdict is Verdict.UNKNOWN else f"is {judgement.verdict}"
    yield f"the history {proves}"
    yield from explain(judgement, limit=1)
    yield from _logs(run.folder / "logs", smallest(judgement.anomalies))
    if run.broker_log:
        yield "the broker's last lines:"
        yield from (f"  {line}" for line in run.broker_log.splitlines()[-_MOST_LINES:])
    yield "injured: " + (", ".join(f"{name} {times}" for name, times in run.injuries.items()) or "nothing")
    yield f"{run.schedule}:"
    planned = run.schedule.lines()
    yield from (f"  {line}" for line in planned[:_MOST_PLANNED])
    if len(planned) > _MOST_PLANNED:
        yield f"  and {len(planned) - _MOST_PLANNED} more"
    yield f"history and logs: {run.folder}"
    if run.repeat:
        yield f"repeat it with: {run.repeat}"


def smallest(anomalies: Sequence[Anomalous]) -> Anomalous | None:
    """Return the anomaly whose life has the fewest operations, of those that have any."""
    return min((each for each in anomalies if each.ops), key=lambda each: len(each.ops), default=None)


def _logs(folder: Path, anomaly: Anomalous | None) -> Iterator[str]:
    for path in sorted(folder.glob("*.log")):
        lines = path.read_text(errors="replace").splitlines()
        shown = _around(lines, anomaly) if anomaly else lines[-5:]
        if shown:
            yield f"{path.name}:"
            yield from (f"  {line}" for line in shown[-_MOST_LINES:])


def _around(lines: Sequence[str], anomaly: Anomalous) -> list[str]:
    """Return the lines that were logged while the anomaly lived, and a little before and after."""
    begin = anomaly.ops[0].time_ns / 1e9 - AROUND.total_seconds()
    end = anomaly.ops[-1].time_ns / 1e9 + AROUND.total_seconds()
    shown, inside = [], False
    for line in lines:
        if found := _STAMP.search(line):
            inside = begin <= _epoch(found) <= end
        if inside:
            shown.append(line)
    return shown


def _epoch(stamp: re.Match[str]) -> float:
    # Celery logs in local time, and so did this machine.
    return datetime.strptime(stamp[1], "%Y-%m-%d %H:%M:%S").astimezone().timestamp() + int(stamp[2]) / 1000
