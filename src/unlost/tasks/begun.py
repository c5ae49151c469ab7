"""What the processes of a pool have begun, in memory that they share with the worker's parent.

A job that the parent has written to an idle process is accepted in the parent's books before the process has
read it (``tasks/handover.py``). The pipe does not tell whether the process has it: it is as empty when
something else has read from it. (Celery 5.7.0 can listen, after a lost connection, on a number that was the
outgoing pipe of a dead process and is now another's incoming one, and so take its jobs out; see
``tasks/outcomes.py``.) So a process leaves a note here, which costs a write to memory instead of a message.
"""

from __future__ import annotations

import mmap
from typing import Any

from billiard.pool import ACK
from billiard.process import current_process

#: Stands in a job where the number of a part would: the parent has noted who has it.
NOTED = 1

#: So many processes have a place; memory is taken up only by those that there are.
PLACES = 1 << 16

_SIZE = 8


class Begun:
    """Which job each process of a pool has begun last.

    Made before the first of them is forked. A note outlives the process that has left it.
    """

    def __init__(self) -> None:
        self._numbers = memoryview(mmap.mmap(-1, PLACES * _SIZE)).cast("Q")

    def note(self, place: int, job: int) -> None:
        """Note in a process's place the number of the job that it begins."""
        # One more, for zero is there from the start.
        self._numbers[place] = job + 1

    def last(self, place: int) -> int | None:
        """Return the number of the job that the process in this place has begun last, if any."""
        number = self._numbers[place]
        return number - 1 if number else None

    def note_acceptances(self, **_signal: Any) -> None:
        """Have this process of a pool note that it accepts a job whose acceptance is known, and not tell.

        For the signal that a process starts with: billiard's loop takes the queue after that.
        """
        process = current_process()
        worker = process._target
        worker.outq = _Noting(worker.outq, self, process.index)


class _Noting:
    """The queue from a process to the pool, without what the pool knows.

    Args:
        queue: Of billiard.
        begun: Where to note it instead.
        place: Of this process.
    """

    def __init__(self, queue: Any, begun: Begun, place: int) -> None:
        self._queue = queue
        self._begun = begun
        self._place = place

    def put(self, message: Any) -> None:
        """Send a message: what it is, and its arguments, the first a job's number, the second its part."""
        kind, arguments = message
        if kind == ACK and arguments[1] == NOTED:
            self._begun.note(self._place, arguments[0])
        else:
            self._queue.put(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)
