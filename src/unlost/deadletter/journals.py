"""Where journals lie, and which of them a command goes on with.

The name is made of what the journal is about, and a number. The last one of that name is gone on with if
it has no end: its run was killed, or lost the broker. Else the next number begins a new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from unlost.deadletter.journal import Journal
from unlost.errors import JournalError

END = "end"


def open_journal(folder: Path, purpose: Mapping[str, Any], path: Path | None) -> Journal:
    """Open the journal to go on with, or a new one.

    Args:
        folder: Where journals lie.
        purpose: What it is about; has ``action`` and ``queue``.
        path: A file to use instead.

    Raises:
        JournalError: It is in use, damaged, about something else, or, if named by its path, finished.
    """
    if path is not None:
        journal = Journal(path, purpose)
        if has_ended(journal):
            journal.close()
            raise JournalError(f"journal {path} is of a run that came to its end: name a new file")
        return journal
    stem = _stem(purpose)
    numbers = [int(each.stem.rpartition(".")[2]) for each in folder.glob(f"{stem}.*.jsonl")]
    number = max(numbers, default=0)
    if number:
        journal = Journal(folder / f"{stem}.{number}.jsonl", purpose)
        if not has_ended(journal):
            return journal
        journal.close()
    return Journal(folder / f"{stem}.{number + 1}.jsonl", purpose)


def has_ended(journal: Journal) -> bool:
    """Whether its run came to its end, be it by an automatic stop."""
    return any(note["event"] == END for note in journal.notes)


def _stem(purpose: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(purpose, sort_keys=True, default=str).encode()).hexdigest()[:8]
    name = quote(Path(str(purpose["queue"])).name, safe="").replace(".", "-")[:120]
    return f"{name}.{purpose['action']}.{digest}"
