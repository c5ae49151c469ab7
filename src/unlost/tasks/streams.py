"""Log streams of a process that was forked while another thread was writing to them.

A buffered stream has a lock, which Python does not make anew in a forked process. One that a thread of the
worker's parent holds at that moment stays locked there for ever: the new process hangs at its first log line,
with its task done and not told, while the parent, which sees it run, renews its lease. So it gets streams of
its own on the same descriptors. Whoever has kept the old one, and writes to it past ``sys`` and ``logging``,
still hangs.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

_STANDARD = ("stdout", "stderr", "__stdout__", "__stderr__")


def renew_after_forks() -> None:
    """Have every process that this one forks begin with streams of its own."""
    os.register_at_fork(after_in_child=renew)


def renew() -> None:
    """Replace the streams of ``sys`` and of all log handlers by new ones on the same descriptors."""
    for name in _STANDARD:
        setattr(sys, name, _renewed(getattr(sys, name)))
    for handler in _stream_handlers():
        # Not by setStream, which flushes the old one. One that is a property is one of sys's.
        with suppress(AttributeError):
            handler.stream = _renewed(handler.stream)


def _stream_handlers() -> Iterator[logging.StreamHandler[Any]]:
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield from (each for each in logger.handlers if isinstance(each, logging.StreamHandler))


def _renewed(stream: Any) -> Any:
    """Return a new stream for one that has a lock; what the old one holds is the parent's to write."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    try:
        has_lock, descriptor = isinstance(stream.buffer, io.BufferedWriter), stream.fileno()
    except ValueError:
        # Closed, or taken apart.
        return stream
    if not has_lock:
        return stream
    made = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    # Kept, for it would be flushed when it goes, and wait for its lock.
    made.inherited = stream  # type: ignore[attr-defined]
    return made
