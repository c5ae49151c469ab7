"""A delivery goes back whatever goes wrong in the background, and a child is seen dead whoever kills it."""

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
from unlost.tasks.consumer import ReliableConsumer
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


def test_a_delivery_goes_back_when_its_letter_cannot_be_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was raised, and be it none of ours; nothing is acked."""
    settled: list[Any] = []

    def fails(*_: Any) -> None:
        raise ValueError("no error of a broker")

    monkeypatch.setattr(ReliableConsumer, "_publish", fails)
    worker = ReliableConsumer.__new__(ReliableConsumer)
    worker.connection_errors = ()
    monkeypatch.setattr(ReliableConsumer, "call_soon_ack", lambda _self, act, *_args: settled.append(act))
    message = SimpleNamespace(ack_log_error="ack", reject_log_error="reject")
    worker._publish_then_settle(message, None)  # type: ignore[arg-type]
    assert settled == ["reject"]


def test_a_delivery_goes_back_when_its_end_cannot_be_recorded() -> None:
    """A revoked one is acked only when all its copies are cancelled."""
    settled: list[str] = []

    def fails(*_: Any) -> None:
        raise ValueError("no error of a store")

    held = ReliableRequest.__new__(ReliableRequest)
    held._message = SimpleNamespace(headers={"task": "t.a", "id": "1"})
    held._connection_errors = ()
    held._on_ack = lambda *_: settled.append("ack")
    held._on_reject = lambda *_: settled.append("reject")
    held.humaninfo = lambda: "t.a[1]"
    settings = SimpleNamespace(settle_patience=timedelta(seconds=1))
    held._runtime = SimpleNamespace(ledger=SimpleNamespace(cancel=fails), settings=settings)  # type: ignore[assignment]
    held._cancel("revoked")
    assert settled == ["reject"]
