"""Reads what the pool's processes tell, all that is there in one system call.

Celery reads each message in two calls, its length and its body, and after each registers the pipe with the
event loop once more, where it is registered: a system call that fails, and an exception.

It also goes on listening to a process that died with a job, by the number of its pipe (5.7.0,
``AsynPool.on_partial_read`` closes the pipes, and ``on_process_down`` then leaves the number where it is).
After a lost connection it listens to all numbers anew. What has that number by then may be the pipe through
which another process gets its jobs: its next job was read here, and thrown away.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

#: Bytes that a pipe holds at most (Linux, ``pipe(7)``).
ALL = 64 * 1024

#: Bytes before a message, which say how long it is (billiard, ``Connection._send_bytes``).
LENGTH = 4


class Outcomes:
    """Stands in for the pool's reader of its processes.

    Args:
        pool: Celery's ``AsynPool``, registered with the loop.
        hub: kombu's event loop.
    """

    def __init__(self, pool: Any, hub: Any) -> None:
        self._pool = pool
        self._hub = hub
        self._pools_destroy = pool.destroy_queues
        #: What was read and not handled, by pipe: the beginning of a message.
        self._begun: dict[int, bytearray] = {}

    def install(self) -> None:
        """Take the place of the pool's reader; again after each registration with the loop."""
        pool = self._pool
        pool._result_handler.handle_event = pool.handle_result_event = self.read
        pool.on_process_up = partial(self._on_process_up, pool.on_process_up)
        pool.destroy_queues = self._destroy
        for pipe in pool._fileno_to_outq:
            self._listen(pipe)
        for pipe in tuple(self._begun):
            # If handling a message raised, the next is here to its end, and nothing else would bring it up.
            self._handle(pipe, b"")

    def _on_process_up(self, pools_own: Callable[[Any], None], process: Any) -> None:
        pools_own(process)
        # Of another process, whose pipe had this number.
        self._begun.pop(process.outqR_fd, None)
        self._listen(process.outqR_fd)

    def _destroy(self, queues: Any, process: Any) -> Any:
        """Forget a dead process by the numbers that it had, before they are others'."""
        pool = self._pool
        if pool._fileno_to_outq.get(process.outqR_fd) is process:
            del pool._fileno_to_outq[process.outqR_fd]
            self._begun.pop(process.outqR_fd, None)
        pool._untrack_child_process(process, self._hub)
        return self._pools_destroy(queues, process)

    def _listen(self, pipe: int) -> None:
        if pipe in self._begun:
            self._hub.add_reader(pipe, self._read_on(pipe))
        else:
            self._hub.add_reader(pipe, self.read, pipe)

    def read(self, pipe: int) -> None:
        """Handle the messages that are in the pipe of a process; what is not all there waits for the rest.

        Raises:
            Exception: What handling a message raised; those behind it are kept.
        """
        try:
            data = os.read(pipe, ALL) if pipe in self._pool._fileno_to_outq else b""
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._handle(pipe, data)
        else:
            # The process is gone; what becomes of its job, the pool sees to.
            self._begun.pop(pipe, None)
            self._hub.remove_reader(pipe)

    def _handle(self, pipe: int, data: bytes) -> None:
        is_begun = pipe in self._begun
        unhandled = self._begun.pop(pipe, bytearray())
        unhandled += data
        try:
            while (end := _end_of(unhandled)) is not None:
                data = bytes(unhandled[LENGTH:end])
                # Gone in any case: what raises would raise again for ever.
                del unhandled[:end]
                if message := pickle.loads(data):  # noqa: S301 - of our own child
                    self._pool._result_handler.on_state_change(message)
        finally:
            if unhandled:
                self._begun[pipe] = unhandled
                if not is_begun:
                    self._listen(pipe)

    def _read_on(self, pipe: int) -> Iterator[None]:
        """Read until no message is begun: the pool, when it stops, asks a generator to finish first."""
        while pipe in self._begun:
            self.read(pipe)
            yield
        if pipe in self._pool._fileno_to_outq:
            self._listen(pipe)


def _end_of(data: bytearray) -> int | None:
    """Return where the first message ends, if it is all there."""
    end = LENGTH + int.from_bytes(data[:LENGTH], "big")
    return end if len(data) >= end else None
