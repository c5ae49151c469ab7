"""The record of recorded runs: one JSON object a line, appended by each run; never rewritten."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unlost.chaos.report import Figures
from unlost.errors import HarnessError

_PACKAGES = ("unlost", "celery", "kombu", "amqp")
_SUMMED = (
    "confirmed",
    "executed",
    "kills",
    "broker_faults",
    "faults",
    "lost",
    "duplicate_effects",
    "dead_lettered",
)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one run came to.

    Attributes:
        figures: Of the run.
        injuries: How often each nemesis struck.
        seeds: Of the nemeses.
        broker: Version of the broker, and how many nodes.
        seconds: How long the run took.
        command: What repeats it.
    """

    figures: Figures
    injuries: Mapping[str, int]
    seeds: Sequence[int]
    broker: str
    seconds: float
    command: str

    def to_json(self) -> dict[str, Any]:
        """Return it as one JSON object."""
        shown = self.figures
        return {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "verdict": shown.verdict,
            "confirmed": shown.confirmed,
            "executed": shown.executed,
            "kills": shown.kills,
            "broker_faults": shown.faults - shown.kills,
            "faults": shown.faults,
            "lost": shown.lost,
            "duplicate_effects": shown.duplicate_effects,
            "dead_lettered": shown.dead_lettered,
            "slowest_recovery_s": shown.slowest_recovery_s,
            "injuries": dict(self.injuries),
            "seeds": list(self.seeds),
            "seconds": round(self.seconds),
            "versions": {
                "rabbitmq": self.broker,
                "python": platform.python_version(),
                **{name: version(name) for name in _PACKAGES},
            },
            "command": self.command,
        }

    def append_to(self, path: Path) -> None:
        """Append it to a record."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as record:
            record.write(json.dumps(self.to_json()) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Read a record.

    Raises:
        HarnessError: It cannot be read, or a line is no run; the message names the line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as exc:
        raise HarnessError(f"cannot read the record {path}: {exc.strerror}") from exc
    return [
        _run(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()
    ]


def _run(line: bytes, place: str) -> dict[str, Any]:
    try:
        run = json.loads(line)
    except ValueError:
        run = None
    if not (isinstance(run, dict) and "verdict" in run and all(_is_count(run.get(name)) for name in _SUMMED)):
        raise HarnessError(f"{place}, is no run that `unlost chaos run --record` wrote")
    return run


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def total(runs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up recorded runs; the verdict of all is ``valid`` only if each one's is."""
    given = list(runs)
    verdicts = {str(run["verdict"]) for run in given}
    worst = next((each for each in ("invalid", "unknown", "valid") if each in verdicts), "unknown")
    sums = {name: sum(run[name] for run in given) for name in _SUMMED}
    return {"runs": len(given), "verdict": worst, **sums}
