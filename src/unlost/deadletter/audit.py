"""Who did what to dead letters, and when: one JSON line for each command that changed something."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def who() -> str:
    """Return user and host, as well as the system knows them."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


class AuditLog:
    """An append-only file; several processes may write to it at a time.

    Args:
        path: The file; made, with its folder, if it is not there.
        actor: Who acts; user and host of this process when not given.
    """

    def __init__(self, path: Path, actor: str | None = None) -> None:
        self.path = path
        self.actor = actor or who()

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the lines, the oldest first; one that a crash has torn is left out."""
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8") as lines:
            for line in lines:
                with suppress(ValueError):
                    yield json.loads(line)

    def write(self, action: str, **details: Any) -> None:
        """Append one line; when this returns it is on disk.

        Raises:
            OSError: It cannot be written; what is to be audited must not be done then.
        """
        line = {"at": datetime.now(UTC).isoformat(), "who": self.actor, "action": action, **details}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # One write to a file opened for appending: lines of two processes do not mix.
            os.write(handle, (json.dumps(line, default=str) + "\n").encode())
            os.fsync(handle)
        finally:
            os.close(handle)
