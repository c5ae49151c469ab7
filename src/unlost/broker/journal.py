"""A migration's journal: an append-only file of JSON lines, each on the disk before the next step.

::

    {"event": "plan", "v": 1, "at": "…", "vhost": "/", "plan": {…}}
    {"event": "begin", "step": 0}
    {"event": "done", "step": 0}
    {"event": "moved", "messages": 1000, "redelivered": 0}
    {"event": "back", "steps": […]}          from here on, steps are those of the way back

A process that is killed leaves a step begun and not done, or half a line, which counts for nothing. Every
step can be taken again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unlost.core.clock import SystemClock
from unlost.errors import ConfigurationError
from unlost.topology.migration import Count, Do, Plan, Step
from unlost.topology.objects import Binding, BrokerObject, Exchange, Policy, Queue

VERSION = 1

_KINDS: Mapping[str, type[BrokerObject]] = {each.kind: each for each in (Exchange, Queue, Binding, Policy)}


@dataclass(slots=True)
class Progress:
    """How far a migration has come.

    Attributes:
        plan: What was planned.
        back: The steps of the way back, once it was taken.
        begun: How many steps of the current direction have begun.
        done: How many of them are done.
        forward_begun: How many steps forward had begun.
        moved: Messages that were confirmed in their new place and acked in the old one, as far as written.
        redelivered: How many of them had been delivered before, so that they may be there twice.
        before: What was in the queues when the current move began; ``None`` outside of one.
    """

    plan: Plan
    back: tuple[Step, ...] | None = None
    begun: int = 0
    done: int = 0
    forward_begun: int = 0
    moved: int = 0
    redelivered: int = 0
    before: Count | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        """Return the steps of the current direction."""
        return self.plan.steps if self.back is None else self.back

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do in the current direction."""
        return self.done >= len(self.steps)


class Journal:
    """An open journal, locked against a second migration that would use it.

    Args:
        file: The file, open for appending.
        progress: What it says so far.
    """

    def __init__(self, file: int, progress: Progress) -> None:
        self._file = file
        self.progress = progress

    def begin(self, step: int) -> None:
        """Note that a step begins."""
        self._write({"event": "begin", "step": step})

    def done(self, step: int) -> None:
        """Note that a step is done."""
        self._write({"event": "done", "step": step})

    def counted(self, before: Count) -> None:
        """Note what is in both queues before anything is moved."""
        self._write({"event": "counted", **asdict(before)})

    def moved(self, messages: int, redelivered: int) -> None:
        """Note how many more messages have been moved."""
        self._write({"event": "moved", "messages": messages, "redelivered": redelivered})

    def back(self, steps: tuple[Step, ...]) -> None:
        """Turn round: the steps from here on are those of the way back."""
        self._write({"event": "back", "steps": [_step_to_json(step) for step in steps]})

    def _write(self, record: Mapping[str, Any]) -> None:
        """Append a record and see it on the disk."""
        _append(self._file, {**record, "at": SystemClock().now().isoformat(timespec="milliseconds")})
        _take(self.progress, record)


@contextmanager
def create_journal(path: Path, plan: Plan, vhost: str) -> Iterator[Journal]:
    """Begin a journal with a plan.

    Raises:
        ConfigurationError: The file exists, or cannot be written.
    """
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as exc:
        raise ConfigurationError(f"the journal {path} cannot be created: {exc}; name another file") from exc
    try:
        _lock(file, path)
        _append(file, {"event": "plan", "v": VERSION, "vhost": vhost, "plan": _plan_to_json(plan)})
        _sync_folder(path)
        yield Journal(file, Progress(plan=plan))
    finally:
        os.close(file)


@contextmanager
def open_journal(path: Path, vhost: str) -> Iterator[Journal]:
    """Go on with a journal.

    Raises:
        ConfigurationError: It is in use, or of another vhost, or no journal.
    """
    file = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        _lock(file, path)
        progress = read_journal(path, vhost)
        _drop_torn_line(file, path)
        yield Journal(file, progress)
    finally:
        os.close(file)


def read_journal(path: Path, vhost: str) -> Progress:
    """Read how far a migration has come.

    Raises:
        ConfigurationError: It cannot be read, or is of another vhost, or no journal.
    """
    try:
        records = [json.loads(line) for line in _whole_lines(path.read_bytes())]
        plan, said = records[0], records[0]["vhost"]
        if plan["v"] != VERSION:
            raise ConfigurationError(f"the journal {path} was written by another release (v{plan['v']})")
        progress = Progress(plan=_plan_from_json(plan["plan"]))
        for record in records[1:]:
            _take(progress, record)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as exc:
        raise ConfigurationError(
            f"{path} is no journal of a migration that can be read ({type(exc).__name__}: {exc}); "
            "name another file, or move this one away"
        ) from exc
    if said != vhost:
        raise ConfigurationError(f"the journal {path} is of vhost {said!r}, not {vhost!r}; name another file")
    return progress


def _take(progress: Progress, record: Mapping[str, Any]) -> None:
    match record["event"]:
        case "begin":
            progress.begun = record["step"] + 1
            if progress.back is None:
                progress.forward_begun = progress.begun
        case "done":
            progress.done = record["step"] + 1
            progress.before = None
        case "counted":
            counts = {name: record[name] for name in ("source", "target", "consumers", "transient")}
            progress.before = Count(**counts)
        case "moved":
            progress.moved += record["messages"]
            progress.redelivered += record["redelivered"]
        case "back":
            progress.back = tuple(_step_from_json(each) for each in record["steps"])
            progress.begun = progress.done = 0
            progress.before = None
        case other:
            raise ValueError(f"event {other!r}")


def _append(file: int, record: Mapping[str, Any]) -> None:
    line = json.dumps(record).encode() + b"\n"
    while line:
        line = line[os.write(file, line) :]
    os.fsync(file)


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise ConfigurationError(
            f"another migration is using the journal {path}; wait until it ends"
        ) from exc


def _sync_folder(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _whole_lines(content: bytes) -> list[bytes]:
    return content[: content.rfind(b"\n") + 1].splitlines()


def _drop_torn_line(file: int, path: Path) -> None:
    """Cut off what a killed writer left, or the next line would be joined to it."""
    os.ftruncate(file, path.read_bytes().rfind(b"\n") + 1)


def _plan_to_json(plan: Plan) -> dict[str, Any]:
    return {**_fields(plan), "steps": [_step_to_json(step) for step in plan.steps]}


def _plan_from_json(data: Mapping[str, Any]) -> Plan:
    return Plan(
        source=data["source"],
        target=data["target"],
        last=data["last"],
        notes=tuple(data["notes"]),
        hops=tuple((old, new) for old, new in data["hops"]),
        steps=tuple(_step_from_json(each) for each in data["steps"]),
    )


def _step_to_json(step: Step) -> dict[str, Any]:
    about = {"kind": step.object.kind, **asdict(step.object)}
    return {"do": step.do, "other": step.other, "hop": step.hop, "object": about}


def _step_from_json(data: Mapping[str, Any]) -> Step:
    about = dict(data["object"])
    kind = _KINDS[about.pop("kind")]
    return Step(do=Do(data["do"]), object=kind(**about), other=data["other"], hop=data["hop"])


def _fields(plan: Plan) -> dict[str, Any]:
    return {
        "source": plan.source,
        "target": plan.target,
        "last": plan.last,
        "notes": plan.notes,
        "hops": plan.hops,
    }
