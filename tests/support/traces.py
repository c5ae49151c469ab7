"""What bodies leave behind: JSON lines, a file for each process, so that no store tells of itself."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def leave(folder: str | Path, **line: Any) -> None:
    """Append one line with the time; what a kill cuts short counts for nothing."""
    with (Path(folder) / f"{os.getpid()}.jsonl").open("a") as out:
        out.write(json.dumps({"at_ms": time.time() * 1000, **line}, default=str) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """Return all complete lines of all processes, in the order of time."""
    found = [line for path in folder.glob("*.jsonl") for line in _lines(path)]
    return sorted(found, key=lambda line: float(line["at_ms"]))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            # Cut off by a kill.
            continue
