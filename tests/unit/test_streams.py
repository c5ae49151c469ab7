"""A process that is forked in the middle of a log line of another thread can log."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import struct
import termios
import threading
from contextlib import suppress
from datetime import timedelta
from typing import TextIO

import pytest

from unlost.errors import HarnessError
from unlost.tasks.streams import renew
from unlost.testing.waiting import wait_until

#: Bytes in a small pipe.
CAPACITY = 4096
SOON = timedelta(seconds=5)


def unread(pipe: int) -> int:
    """Return how many bytes of a pipe nobody has read."""
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0])


def say(stream: TextIO) -> None:
    """Write more than the pipe takes."""
    stream.write("x" * 3 * CAPACITY)
    stream.flush()


def read_all(pipe: int, into: bytearray) -> None:
    """Read until nobody can write any more."""
    while data := os.read(pipe, CAPACITY):
        into += data


def forked(logger: logging.Logger, *, renews: bool) -> int:
    """Fork a process that logs a line and ends."""
    child = os.fork()
    if child == 0:
        try:
            if renews:
                renew()
            logger.warning("said")
            os._exit(0)
        finally:
            # It must not go on with the tests.
            os._exit(1)
    return child


def has_ended(child: int) -> bool:
    """Wait for a process to end well by itself; kill it if it does not end."""
    statuses: list[int] = []

    def look() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            statuses.append(status)
        return bool(pid)

    with suppress(HarnessError):
        wait_until(look, SOON, "the process has ended")
    if not statuses:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return statuses == [0]


@pytest.mark.parametrize("renews", [True, False])
def test_a_process_logs_whatever_another_thread_was_writing(renews: bool) -> None:
    """The lock that the thread held at the fork is not the process's; without a new stream it hangs."""
    reads, writes = os.pipe()
    fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, CAPACITY)
    logger = logging.getLogger("tests.streams")
    logger.propagate = False
    with os.fdopen(writes, "w") as stream:
        logger.addHandler(handler := logging.StreamHandler(stream))
        writer = threading.Thread(target=say, args=(stream,))
        writer.start()
        wait_until(lambda: unread(reads) == CAPACITY, SOON, "the thread is in the middle of its write")
        child = forked(logger, renews=renews)
        said = bytearray()
        reader = threading.Thread(target=read_all, args=(reads, said))
        reader.start()
        ended = has_ended(child)
        writer.join()
        logger.removeHandler(handler)
    reader.join()
    os.close(reads)
    assert (ended, b"said" in said) == (renews, renews)
