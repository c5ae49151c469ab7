"""What a broker leaves behind, however the process that started it ends: nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from tests.support.brokers import require
from unlost.errors import HarnessError
from unlost.testing.brokers import start_broker
from unlost.testing.brokers.local import LocalBroker
from unlost.testing.brokers.node import PREFIX, sweep
from unlost.testing.waiting import wait_until

SOON = timedelta(seconds=10)
OWNER = """
import json, os, signal, sys
from unlost.testing.brokers import start_broker

with start_broker(sys.argv[1], environ=os.environ) as broker:
    facts = broker.pids() if broker.provider == "local" else {"id": broker._container.get_container_id()}
    if sys.argv[2] == "fork" and os.fork() == 0:
        os.close(1)
        signal.pause()
    print(json.dumps(facts), flush=True)
    signal.pause()
"""


@pytest.fixture
def need_local(request: pytest.FixtureRequest) -> None:
    """Skip without an installed RabbitMQ."""
    require("local", request.config)


@pytest.fixture
def need_docker(request: pytest.FixtureRequest) -> None:
    """Skip without a Docker engine."""
    require("docker", request.config)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Return this environment with a temporary directory of its own."""
    return {**os.environ, "TMPDIR": str(tmp_path)}


@contextmanager
def owner(
    provider: str, environ: dict[str, str], how: str = "plain"
) -> Iterator[tuple[int, dict[str, object]]]:
    """Run a process that starts a broker; yields its pid and what it says of the broker."""
    command = [sys.executable, "-W", "ignore", "-c", OWNER, provider, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ, start_new_session=True) as process:
        try:
            if process.stdout is None:
                raise HarnessError("no output to read")
            yield process.pid, json.loads(process.stdout.readline())
        finally:
            # With the process goes what it forked.
            os.killpg(process.pid, signal.SIGKILL)


def running(pids: dict[str, object]) -> list[str]:
    """Name those processes that still run; one that nobody has reaped does not."""
    return [name for name, pid in pids.items() if isinstance(pid, int) and _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def children_of(pid: int) -> dict[str, object]:
    """Return all that a process started, and what that started."""
    return {
        f"{child.name()}:{child.pid}": child.pid for child in psutil.Process(pid).children(recursive=True)
    }


@pytest.mark.usefixtures("need_local")
def test_a_closed_node_leaves_nothing(tmp_path: Path, environ: dict[str, str]) -> None:
    """After the end of a node no process of it runs and the temporary directory is empty."""
    with start_broker("local", environ=environ) as broker:
        assert isinstance(broker, LocalBroker)
        assert [path.name.startswith(PREFIX) for path in tmp_path.iterdir()] == [True]
        guardian = broker.pids()["guardian"]
        assert guardian is not None
        processes = {"guardian": guardian, **children_of(guardian)}
        assert len(processes) >= 3
    wait_until(lambda: not running(processes), SOON, "all are gone", why_not=lambda: running(processes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("need_local")
@pytest.mark.parametrize("how", ["plain", "fork"])
def test_a_node_ends_with_the_process_that_started_it(
    tmp_path: Path, environ: dict[str, str], how: str
) -> None:
    """SIGKILL of the owner ends guardian, epmd and node, even if a fork holds the owner's pipes open."""
    with owner("local", environ, how) as (pid, pids):
        assert running(pids) == ["guardian", "epmd", "server"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not running(pids), SOON, "the node is gone", why_not=lambda: running(pids))
        wait_until(lambda: not list(tmp_path.iterdir()), SOON, "the directory is gone")


@pytest.mark.usefixtures("need_local")
def test_a_paused_node_ends_with_its_owner(tmp_path: Path, environ: dict[str, str]) -> None:
    """A frozen node is no exception."""
    with owner("local", environ) as (pid, pids):
        server = pids["server"]
        assert isinstance(server, int)
        os.kill(server, signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not running(pids), SOON, "the node is gone", why_not=lambda: running(pids))


@pytest.mark.usefixtures("need_local")
@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_a_killed_guardian_takes_its_node_along(tmp_path: Path, environ: dict[str, str]) -> None:
    """SIGKILL of the guardian ends epmd and node; the next start sweeps the directory it leaves."""
    with start_broker("local", environ=environ) as broker:
        assert isinstance(broker, LocalBroker)
        pids = broker.pids()
        guardian = pids["guardian"]
        assert guardian is not None
        os.kill(guardian, signal.SIGKILL)
        remaining: dict[str, object] = {name: pid for name, pid in pids.items() if name != "guardian"}
        wait_until(lambda: not running(remaining), SOON, "the node is gone")
        with pytest.raises(HarnessError, match="guardian of the private node"):
            broker.kill()
        (directory,) = tmp_path.iterdir()
        os.utime(directory, (0, 0))
        sweep(tmp_path)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("need_local")
def test_signals_meant_for_the_owner_spare_the_node(environ: dict[str, str]) -> None:
    """Ctrl-C and a hang-up are the owner's business: the guardian goes on."""
    with start_broker("local", environ=environ) as broker:
        assert isinstance(broker, LocalBroker)
        before = broker.pids()
        guardian = before["guardian"]
        assert guardian is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(guardian, number)
        assert broker.pids() == before


@pytest.mark.usefixtures("need_docker")
def test_the_next_start_removes_an_orphaned_container() -> None:
    """A container whose owner was killed is removed by the next start; one in use is left alone."""
    import docker

    environ = dict(os.environ)
    with owner("docker", environ) as (alive, kept), owner("docker", environ) as (dead, orphan):
        os.kill(dead, signal.SIGKILL)
        wait_until(lambda: not _runs(dead), SOON, "the owner is dead")
        with start_broker("docker", environ=environ):
            pass
        engine = docker.from_env()
        try:
            ids = [container.id for container in engine.containers.list(all=True)]
        finally:
            engine.close()
        assert kept["id"] in ids
        assert orphan["id"] not in ids
        assert _runs(alive)
    with start_broker("docker", environ=environ):
        pass
