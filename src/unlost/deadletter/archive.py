"""Letters in a file, one JSON object a line, from which they can be sent back.

The body is text where it is UTF-8 and base64 otherwise; what JSON has no form for (times, bytes, decimals
in headers) is written as an object with one key that begins with ``$``.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

from unlost.core.clock import moment_of
from unlost.core.outcome import Outcome
from unlost.deadletter.letter import DeadLetter
from unlost.errors import DeadLetterError

VERSION = 1


def to_line(letter: DeadLetter, notes: Mapping[str, Any] | None = None) -> str:
    """Return a letter as one line, with notes (who, why, when) beside it."""
    document = {
        "v": VERSION,
        **({"notes": dict(notes)} if notes else {}),
        "queue": letter.queue,
        "exchange": letter.exchange,
        "routing_key": letter.routing_key,
        "properties": to_json(letter.properties),
        "headers": to_json(letter.headers),
        **_body_to_json(letter.body),
    }
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False) + "\n"


def from_line(line: str, place: str = "this line") -> DeadLetter:
    """Return the letter that a line holds.

    Args:
        line: As :func:`to_line` made it.
        place: Where it stands, for the error.

    Raises:
        DeadLetterError: It holds none, or one of another version.
    """
    try:
        document = json.loads(line)
        if document["v"] != VERSION:
            raise DeadLetterError(
                f"{place} is of version {document['v']}; this unlost reads version {VERSION}"
            )
        return DeadLetter(
            queue=document["queue"],
            exchange=document.get("exchange", ""),
            routing_key=document.get("routing_key", ""),
            properties=_from_json(document["properties"]),
            headers=_from_json(document["headers"]),
            body=_body_from_json(document),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise DeadLetterError(f"{place} holds no letter ({type(exc).__name__}: {exc})") from exc


def read(path: Path) -> Iterator[DeadLetter]:
    """Yield the letters of a file.

    Raises:
        DeadLetterError: A line holds none; those before it were yielded. A last line that a crash has torn
            ends the file: its letter was never taken out of its queue.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                return
            yield from_line(line, f"{path}, line {number}")


def export(letters: Iterable[DeadLetter], path: Path) -> int:
    """Write letters to a new file and return how many; the file appears when it is whole.

    Raises:
        DeadLetterError: There is a file of that name.
    """
    if path.exists():
        raise DeadLetterError(f"{path} exists already: name another file")
    partial = path.with_name(f"{path.name}.partial")
    count = 0
    with partial.open("w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        for letter in letters:
            file.write(to_line(letter))
            count += 1
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    return count


@dataclass(frozen=True, slots=True)
class Stored:
    """A letter that was written."""

    outcome: Outcome = Outcome.OK
    error: Exception | None = None


class Archive:
    """A file that letters are appended to before they leave their queue.

    Args:
        path: The file; made if it is not there, readable by its owner only, because payloads are in it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._end_torn_line()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def append(self, letters: Sequence[DeadLetter], notes: Mapping[str, Any]) -> list[Stored]:
        """Append letters; when this returns they are on disk.

        Crash safety:
            A crash before the return leaves some of them written, all still in their queue; what is then
            written a second time is one letter when it is sent back.
        """
        data = "".join(to_line(letter, notes) for letter in letters).encode("utf-8", "surrogatepass")
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)
        return [Stored() for _ in letters]

    def _end_torn_line(self) -> None:
        """Cut off what a crash has torn: its letter never left its queue."""
        size = os.fstat(self._file).st_size
        while size:
            step = min(size, 65536)
            block = os.pread(self._file, step, size - step)
            end = block.rfind(b"\n")
            if end >= 0:
                size = size - step + end + 1
                break
            size -= step
        os.ftruncate(self._file, size)


def to_json(value: Any) -> Any:
    """Return a header's value as JSON can hold it."""
    match value:
        case Mapping():
            return {str(name): to_json(inner) for name, inner in value.items()}
        case list() | tuple():
            return [to_json(inner) for inner in value]
        case datetime():
            return {"$time": moment_of(value).isoformat()}
        case bytes() | bytearray() | memoryview():
            return {"$bytes": base64.b64encode(bytes(value)).decode()}
        case Decimal():
            return {"$decimal": str(value)}
        case _:
            return value


def _from_json(value: Any) -> Any:
    match value:
        case {"$time": str(text)}:
            return datetime.fromisoformat(text)
        case {"$bytes": str(text)}:
            return base64.b64decode(text)
        case {"$decimal": str(text)}:
            return Decimal(text)
        case dict():
            return {name: _from_json(inner) for name, inner in value.items()}
        case list():
            return [_from_json(inner) for inner in value]
        case _:
            return value


def _body_to_json(body: bytes) -> dict[str, str]:
    try:
        return {"body": body.decode("utf-8")}
    except UnicodeDecodeError:
        return {"body64": base64.b64encode(body).decode()}


def _body_from_json(document: Mapping[str, Any]) -> bytes:
    if "body64" in document:
        return base64.b64decode(document["body64"])
    return str(document["body"]).encode()
