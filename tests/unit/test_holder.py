"""Whether the holder of a lease is known to be dead; doubt counts for the living."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from subprocess import Popen

import pytest

from tests.support.processes import sleeper, wait_for_state
from unlost.idempotency import holder as module
from unlost.idempotency.holder import is_gone, is_of_another_boot, make_holder


def holder_of(process: Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the holder that another process would make."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: process.pid)
        return make_holder()


def altered(holder: str, part: int, value: str) -> str:
    """Return a holder with one part replaced: 0 host, 1 boot, 2 namespace, 3 PID, 4 start time."""
    nonce, _, place = holder.partition("@")
    parts = place.split("/")
    parts[part] = value
    return f"{nonce}@{'/'.join(parts)}"


def test_each_delivery_has_a_holder_of_its_own() -> None:
    """Two holders of one process differ, and both fit the store's column."""
    assert make_holder() != make_holder()
    assert len(make_holder()) <= 255


def test_processes_of_one_parent_count_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a fork inherits does not lead it to the numbers of its parent, whatever else it cannot read."""
    ours = make_holder().partition("@")[0]
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        theirs = make_holder().partition("@")[0]
    assert abs(int(ours, 16) - int(theirs, 16)) > 1000


def test_this_process_is_not_gone() -> None:
    """A holder of a running process lives."""
    assert not is_gone(make_holder())
    assert not is_of_another_boot(make_holder())


def test_a_stopped_process_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process may go on at any moment; only the lease's expiry permits a takeover."""
    with sleeper() as process:
        holder = holder_of(process, monkeypatch)
        process.send_signal(signal.SIGSTOP)
        wait_for_state(process.pid, "T")

        assert not is_gone(holder)


def test_a_killed_process_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was killed and reaped is dead."""
    with sleeper() as process:
        holder = holder_of(process, monkeypatch)
        assert not is_gone(holder)
        process.kill()
        process.wait()

        assert is_gone(holder)


def test_a_zombie_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that nobody has reaped yet runs no more."""
    with sleeper() as process:
        holder = holder_of(process, monkeypatch)
        process.kill()
        wait_for_state(process.pid, "Z")

        assert is_gone(holder)


def test_a_reused_pid_is_gone() -> None:
    """Another process under the same PID started at another time."""
    assert is_gone(altered(make_holder(), 4, "1"))


def test_another_host_cannot_be_told() -> None:
    """Neither a foreign PID nor a foreign boot says that a process on another host is dead."""
    foreign = altered(altered(make_holder(), 0, "elsewhere"), 3, "999999999")

    assert not is_gone(foreign)
    assert not is_gone(altered(foreign, 1, "00000000"))


def test_another_pid_namespace_cannot_be_told() -> None:
    """The PIDs of another container are not ours to look up."""
    assert not is_gone(altered(altered(make_holder(), 2, "1"), 3, "999999999"))


def test_another_boot_is_gone() -> None:
    """No process outlives its kernel."""
    assert is_gone(altered(make_holder(), 1, "00000000"))


def test_another_boot_is_told_whatever_the_host_is_called() -> None:
    """A container often comes back under another host name after a reboot."""
    assert is_of_another_boot(altered(altered(make_holder(), 0, "elsewhere"), 1, "00000000"))
    assert not is_of_another_boot(altered(make_holder(), 0, "elsewhere"))


@pytest.mark.parametrize("holder", ["", "x", "x@", "x@a/b", "x@a/b/c/pid/1", "x@////", "worker@host"])
def test_a_foreign_holder_is_not_gone(holder: str) -> None:
    """A text of another shape proves nothing."""
    assert not is_gone(holder)


@pytest.mark.parametrize(
    "unreadable", [{"stat"}, {"boot_id"}, {"stat", "boot_id"}], ids=lambda names: "+".join(sorted(names))
)
def test_what_cannot_be_read_proves_nothing(unreadable: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without a free file descriptor must not take its neighbours for dead."""
    before, read = make_holder(), Path.read_text

    def no_descriptor(path: Path) -> str:
        if path.name in unreadable:
            raise OSError(errno.EMFILE, "Too many open files")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", no_descriptor)
        assert not is_gone(before)
        assert not is_of_another_boot(before)
        module._own_place.cache_clear()  # as in a process that has not made one yet
        blind = make_holder()

    assert module.UNKNOWN not in make_holder()
    assert module.UNKNOWN in blind
    assert not is_gone(blind)
    assert not is_of_another_boot(blind)
