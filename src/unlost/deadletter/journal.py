"""The journal of a redrive: which letters are known to have arrived, so that none is sent twice.

One JSON line for each letter, appended and synced *after* its publish was confirmed and *before* the letter
is acked. Killed in between, the next run finds the letter in the queue and in the journal, and only acks it.
What is not in the journal is published again under the same message id and redrive number, and the
consumer's ledger absorbs the copy.

A line that a crash has torn is cut off when the journal is opened again: it was never relied on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from unlost.errors import JournalError

VERSION = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A letter that is safe elsewhere.

    Attributes:
        identity: Of its message; ``None`` for a letter without one, which cannot be recognised again.
        redrives: The redrive number that the letter bears.
        details: What else the journal shall keep.
    """

    identity: str | None
    redrives: int
    details: Mapping[str, Any] = field(default_factory=dict)


class Journal:
    """An append-only file that one process writes at a time.

    Args:
        path: The file; made, with its folder, if it is not there.
        purpose: What it is about (queue, action, ...); a journal that is opened again must agree.

    Raises:
        JournalError: It is in use, is about something else, or is damaged before its last line.
    """

    def __init__(self, path: Path, purpose: Mapping[str, Any]) -> None:
        self.path = path
        self._known: set[bytes] = set()
        self.sent = 0
        self.notes: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._lock()
            self.is_new = not self._read(dict(purpose))
            if self.is_new:
                self._append([{"v": VERSION, "event": "begin", **purpose}])
                _sync_folder(path.parent)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let others have it."""
        os.close(self._file)

    def knows(self, identity: str | None, redrives: int) -> bool:
        """Whether a letter of this message and redrive number is safe elsewhere."""
        return identity is not None and _digest(identity, redrives) in self._known

    def record(self, entries: Iterable[Entry]) -> None:
        """Append letters that are safe elsewhere; when this returns they are on disk.

        Crash safety:
            A crash before the return leaves any number of them recorded, and at most one torn line.
        """
        entries = list(entries)
        self._append([{"sent": each.identity, "r": each.redrives, **each.details} for each in entries])
        for each in entries:
            self._remember(each.identity, each.redrives)

    def note(self, event: str, **fields: Any) -> None:
        """Append an event of the run: a canary's verdict, a stop, the end."""
        self._append([{"event": event, **fields}])
        self.notes.append({"event": event, **fields})

    def _remember(self, identity: str | None, redrives: int) -> None:
        self.sent += 1
        if identity is not None:
            self._known.add(_digest(identity, redrives))

    def _append(self, lines: list[dict[str, Any]]) -> None:
        if not lines:
            return
        text = "".join(json.dumps(line, separators=(",", ":"), default=str) + "\n" for line in lines)
        self._write(text.encode())
        self._sync()

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._file, data) :]

    def _sync(self) -> None:
        os.fsync(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise JournalError(
                f"journal {self.path} is being written by another process: wait for it or stop it first"
            ) from exc

    def _read(self, purpose: dict[str, Any]) -> bool:
        """Read what is there, cut off a torn last line, and stand at the end; false if there is nothing."""
        good = 0
        with os.fdopen(os.dup(self._file), "rb") as lines:
            lines.seek(0)
            for number, line in enumerate(lines, 1):
                # Without its end it may be torn, and whole by chance: it was not relied on either way.
                if not line.endswith(b"\n"):
                    break
                self._take(_parsed(line, f"{self.path}, line {number}"), number, purpose)
                good += len(line)
        os.ftruncate(self._file, good)
        os.lseek(self._file, good, os.SEEK_SET)
        return good > 0

    def _take(self, line: dict[str, Any], number: int, purpose: dict[str, Any]) -> None:
        if number == 1:
            self._check(line, purpose)
        elif "event" in line:
            self.notes.append(line)
        else:
            self._remember(line["sent"], line["r"])

    def _check(self, begin: dict[str, Any], purpose: dict[str, Any]) -> None:
        if begin.get("event") != "begin" or begin.get("v") != VERSION:
            raise JournalError(f"{self.path} is no journal of this version of unlost: use another file")
        for name, value in purpose.items():
            if name in begin and begin[name] != value:
                raise JournalError(
                    f"journal {self.path} is about {name} {begin[name]!r}, not {value!r}: "
                    "give the options it was begun with, or another file"
                )


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise JournalError(f"{place} is damaged: letters it records may be sent again; use a copy of it")
    return parsed


def _digest(identity: str, redrives: int) -> bytes:
    """Return 16 bytes: a million of them are far smaller than a million names."""
    return hashlib.blake2b(f"{redrives} {identity}".encode(errors="replace"), digest_size=16).digest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
