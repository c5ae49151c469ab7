"""The history of a run: who did what, when, and what is known of it.

A history is the only thing that checkers read. It follows Jepsen's model: every operation is first an
``invoke`` and then ``ok`` (it certainly happened), ``fail`` (it certainly did not) or ``info`` (nobody can
tell); see https://github.com/jepsen-io/history. Each process writes its own file of JSON lines, and
:func:`load` merges a folder of them.

The operations that the checkers know, by ``f``:

=================  ==================================================================================
``publish``        a client promises the effect ``value``; ``ok`` when the broker confirmed the message
``start``          a task body began; ``extra["pid"]`` is the process that runs it
``end``            that body returned or raised, in the same process
``effect``         ``ok`` once for every time the effect is found in the database, at its commit time
``dead``           ``ok`` for a letter that was found in a dead-letter queue
``redrive``        an operator sent the letter back
``drain``          the harness emptied the queues; anything but ``ok`` at the end is a crashed drain
``residual``       ``ok`` after the drain, ``value`` is a queue, ``extra["messages"]`` what is left in it
``letters``        ``ok`` for each dead-letter queue: ``extra`` has the broker's count and how many were read
``workload``       ``extra["per_message"]`` is how many effects one message promises
``schedule``       what the nemeses were to do, and the seed
``kill``           one operation for each kill that struck; ``extra["pids"]`` are the processes it killed
``crash``          a ``kill`` at a ``point`` of a ``delivery``, both in ``extra``, by the process itself
(any nemesis)      of process ``nemesis``: ``info`` when it strikes, ``ok`` when that is over
=================  ==================================================================================

``value`` names the promised effect, the thing that must happen once, such as ``"17/charge"``.
The processes of a run share one clock, which no nemesis can set (:mod:`unlost.chaos.clock`); effects have the
time that their rows say.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any, Literal, overload

from unlost.errors import HarnessError

OpType = Literal["invoke", "ok", "fail", "info"]

_TYPES = ("invoke", "ok", "fail", "info")
_SHAPE: tuple[tuple[str, type | tuple[type, ...]], ...] = (
    ("index", int),
    ("time_ns", int),
    ("process", str),
    ("f", str),
    ("value", (str, NoneType)),
    ("extra", dict),
)


@dataclass(frozen=True, slots=True)
class Op:
    """One line of a history.

    Attributes:
        index: Position in the history; in a file that was not merged yet, the writer's own count.
        time_ns: Wall-clock nanoseconds since the epoch.
        process: Who did it, such as ``"publisher"``, ``"worker-1"`` or ``"nemesis"``.
        type: What is known of it.
        f: What was done.
        value: The promised effect it concerns, or the queue for ``residual``.
        extra: Anything else that JSON can hold.
    """

    index: int
    time_ns: int
    process: str
    type: OpType
    f: str
    value: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def to_json(self) -> str:
        """Return one line of ASCII JSON without its newline.

        Raises:
            HarnessError: ``extra`` holds something that JSON cannot.
        """
        fields = {name: getattr(self, name) for name in self.__slots__}
        try:
            return json.dumps(fields | {"extra": dict(self.extra)}, separators=(",", ":"))
        except (TypeError, ValueError) as exc:
            raise HarnessError(f"operation {self.f!r} of {self.process!r} does not fit JSON: {exc}") from exc

    @classmethod
    def from_json(cls, line: str | bytes) -> Op:
        """Read one line; fields that this release does not know are ignored.

        Raises:
            HarnessError: The line is not JSON, or a field is missing or of the wrong type.
        """
        try:
            fields = json.loads(line)
        except ValueError as exc:
            raise HarnessError(f"not JSON: {exc}") from exc
        return _op(fields)


def _op(fields: object) -> Op:
    if not isinstance(fields, dict):
        raise HarnessError("not a JSON object")
    known: dict[str, Any] = {"index": 0, "value": None, "extra": {}} | fields
    wrong = [name for name, kind in _SHAPE if not isinstance(known.get(name), kind)]
    wrong += [] if known.get("type") in _TYPES else ["type"]
    if wrong:
        raise HarnessError(f"no operation: missing or wrong {', '.join(wrong)}")
    return Op(type=known["type"], **{name: known[name] for name, _ in _SHAPE})


class History(Sequence[Op]):
    """Operations in the order of time, with indexes that are built once and on first use.

    Args:
        ops: The operations, in order.
    """

    def __init__(self, ops: Iterable[Op] = ()) -> None:
        self._ops = tuple(ops)

    @classmethod
    def merged(cls, ops: Iterable[Op]) -> History:
        """Order operations by time, keep the given order among equals, and number them anew."""
        ordered = sorted(ops, key=lambda op: op.time_ns)
        return cls(replace(op, index=index) for index, op in enumerate(ordered))

    @overload
    def __getitem__(self, index: int) -> Op: ...
    @overload
    def __getitem__(self, index: slice) -> History: ...
    def __getitem__(self, index: int | slice) -> Op | History:
        return History(self._ops[index]) if isinstance(index, slice) else self._ops[index]

    def __len__(self) -> int:
        return len(self._ops)

    def __iter__(self) -> Iterator[Op]:
        return iter(self._ops)

    def __repr__(self) -> str:
        return f"<History of {len(self)} operations>"

    def of(self, f: str, *types: OpType) -> tuple[Op, ...]:
        """Return the operations of one kind; no ``types`` means all of them."""
        ops = self._by_f.get(f, ())
        return tuple(op for op in ops if op.type in types) if types else tuple(ops)

    def named(self, f: str, *types: OpType) -> Iterator[tuple[str, Op]]:
        """Yield the operations of one kind with the value that each of them is about.

        Raises:
            HarnessError: One of them has no value. It must not be skipped: a publish that names no
                effect is a promise that nobody would check.
        """
        for op in self.of(f, *types):
            if op.value is None:
                raise HarnessError(f"operation {op.index} ({op.f} {op.type} of {op.process}) has no value")
            yield op.value, op

    def values(self, f: str, *types: OpType) -> frozenset[str]:
        """Return the values of the operations of one kind; raises as :meth:`named` does."""
        return frozenset(value for value, _ in self.named(f, *types))

    def about(self, value: str) -> tuple[Op, ...]:
        """Return all operations on one value, in order; costs no pass over the history."""
        return tuple(self._by_value.get(value, ()))

    @cached_property
    def _by_f(self) -> dict[str, list[Op]]:
        return _grouped((op.f, op) for op in self._ops)

    @cached_property
    def _by_value(self) -> dict[str, list[Op]]:
        return _grouped((op.value, op) for op in self._ops if op.value is not None)


def _grouped(pairs: Iterable[tuple[str, Op]]) -> dict[str, list[Op]]:
    groups: dict[str, list[Op]] = {}
    for key, op in pairs:
        groups.setdefault(key, []).append(op)
    return groups


class Recorder:
    """Writes one file of a history, for one process.

    Each operation is one ``write(2)`` to a descriptor opened with ``O_APPEND``, so threads may share a
    recorder, and a SIGKILL leaves at most one torn line, the last: what was recorded before is with the
    kernel. Only a crash of the host can take it back.

    Args:
        path: The file; made, with its folder, if it is missing. A process that starts again, or forks,
            needs a file of its own: see :func:`fresh_file`.
        now_ns: Wall-clock nanoseconds since the epoch.

    Raises:
        HarnessError: The file cannot be opened, or ends in the torn line of a writer that died:
            appending would turn that line into garbage in the middle of the file.
    """

    def __init__(self, path: Path, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._path = path
        self._now_ns = now_ns
        self._pid = os.getpid()
        self._count = itertools.count()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as exc:
            raise HarnessError(
                f"cannot open {path}: {exc.strerror}; name a file that can be written"
            ) from exc
        self._refuse_torn_file()

    def _refuse_torn_file(self) -> None:
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            self.close()
            raise HarnessError(f"{self._path} ends in a torn line, its writer died; record to a fresh file")

    def record(
        self,
        process: str,
        type: OpType,
        f: str,
        value: str | None = None,
        *,
        time_ns: int | None = None,
        **extra: Any,
    ) -> None:
        """Append one operation.

        Args:
            process: Who did it.
            type: What is known of it.
            f: What was done.
            value: The promised effect it concerns.
            time_ns: When it happened, if that is not now: an effect happened when its row was committed.
            **extra: Anything else that JSON can hold.

        Raises:
            HarnessError: The line could not be written whole, or this process is a fork of the one that
                opened the file. After a short write the file is refused by :func:`load`.
        """
        moment = self._now_ns() if time_ns is None else time_ns
        op = Op(next(self._count), moment, process, type, f, value, extra)
        self._append(op.to_json().encode() + b"\n")

    def _append(self, line: bytes) -> None:
        if os.getpid() != self._pid:
            # Two writers of one file could leave a torn line in its middle.
            raise HarnessError(f"{self._path} was opened by process {self._pid}; open one file per process")
        try:
            written = os.write(self._fd, line)
        except OSError as exc:
            raise HarnessError(f"cannot record to {self._path}: {exc.strerror}") from exc
        if written != len(line):
            raise HarnessError(f"wrote {written} of {len(line)} bytes to {self._path}; is the disk full?")

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fresh_file(folder: Path, name: str) -> Path:
    """Return a path that no other process uses, even where process ids repeat as in containers."""
    return folder / f"{name}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"


def load(path: Path) -> History:
    """Read a history from all ``*.jsonl`` files of a folder, or from one file.

    Operations are ordered by time; among equals, by file name and line. A torn last line is ignored: its
    writer died in the middle of it, so the operation was not recorded.

    Raises:
        HarnessError: There is no such file, a folder without any, or a line that is not an operation;
            the message names file and line.
    """
    return History.merged(op for file in _files(path) for op in _read(file))


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise HarnessError(f"{path} holds no *.jsonl file; was anything recorded there?")
    return files


def _read(file: Path) -> Iterator[Op]:
    try:
        *lines, tail = file.read_bytes().split(b"\n")
    except OSError as exc:
        raise HarnessError(f"cannot read {file}: {exc.strerror}") from exc
    if _is_json(tail):
        lines.append(tail)
    for number, line in enumerate(lines, start=1):
        yield _parse(line, f"{file}, line {number}")


def _is_json(tail: bytes) -> bool:
    """Tell a whole last line from a torn one: no beginning of a JSON object is JSON itself."""
    try:
        json.loads(tail)
    except ValueError:
        return False
    return True


def _parse(line: bytes, place: str) -> Op:
    try:
        return Op.from_json(line)
    except HarnessError as exc:
        raise HarnessError(f"{place}: {exc}") from exc
