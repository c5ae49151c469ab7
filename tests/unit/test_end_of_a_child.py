"""The parent sees a child dead whoever kills it, and the delivery that it had goes back whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from unlost.idempotency.memory import MemoryStore
from unlost.tasks import request
from unlost.tasks.request import ReliableRequest, kill_and_watch


def test_a_child_that_runs_is_killed_and_left_to_be_reaped() -> None:
    """Its exit status is there for whoever started it."""
    with subprocess.Popen(["sleep", "60"]) as child:
        kill_and_watch(child.pid)
        assert child.wait() == -signal.SIGKILL


def test_a_child_that_is_reaped_in_this_very_moment_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Billiard kills and reaps it between the look at it and the kill."""
    kill = os.kill

    def reaped_first(pid: int, number: int) -> None:
        kill(pid, number)
        os.waitpid(pid, 0)
        kill(pid, number)

    child = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(os, "kill", reaped_first)
    kill_and_watch(child.pid)
    with pytest.raises(ProcessLookupError):
        kill(child.pid, 0)
    monkeypatch.undo()
    child.wait()


@pytest.mark.parametrize("count", [True, False])
def test_a_delivery_goes_back_when_its_child_cannot_be_killed(
    monkeypatch: pytest.MonkeyPatch, count: bool
) -> None:
    """Else it would be with this worker, unsettled, for as long as its connection lasts."""
    given_back: list[Any] = []

    def refused(pid: int) -> None:
        raise PermissionError(pid)

    monkeypatch.setattr(request, "kill_and_watch", refused)
    held = ReliableRequest.__new__(ReliableRequest)
    held.holder = "h"
    held._connection_errors = ()
    held._on_reject = lambda *args: given_back.append(args[-1])
    held._message = SimpleNamespace(on_the_loop=lambda *args: given_back.append(args[1]))
    settings = SimpleNamespace(settle_patience=timedelta(seconds=1))
    held._runtime = SimpleNamespace(ledger=MemoryStore(), settings=settings)  # type: ignore[assignment]
    with pytest.raises(PermissionError):
        held._end_lease(1, count=count)
    assert given_back == [True if count else held._message]
