"""A process notes which job it has begun, and tells only of those that the parent does not know of."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.pool import ACK, READY

from unlost.tasks.begun import NOTED, PLACES, Begun

PLACE = 3


def test_what_a_forked_process_notes_its_parent_reads() -> None:
    """Also after the process has died, and job zero is a job."""
    begun = Begun()
    assert [begun.last(place) for place in (0, PLACE, PLACES - 1)] == [None, None, None]
    for job in (0, 7):
        child = os.fork()
        if not child:
            begun.note(PLACE, job)
            os._exit(0)
        os.waitpid(child, 0)
        assert [begun.last(place) for place in (0, PLACE, PLACES - 1)] == [None, job, None]


def test_a_process_says_nothing_of_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends its acceptance of other jobs, and all else, and its queue is otherwise the same."""
    sent: list[Any] = []
    queue = SimpleNamespace(put=sent.append, name="out")
    process = SimpleNamespace(_target=SimpleNamespace(outq=queue), index=PLACE)
    monkeypatch.setattr("unlost.tasks.begun.current_process", lambda: process)
    begun = Begun()
    begun.note_acceptances()
    kept = [(ACK, (1, None, 0.0, 7, None)), (READY, (1, NOTED, "result", 5))]
    for message in (*kept, (ACK, (2, NOTED, 0.0, 7, None))):
        process._target.outq.put(message)
    assert (sent, process._target.outq.name, begun.last(PLACE)) == (kept, "out", 2)
