"""Workers in containers of an image with somebody else's project in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.brokers import require
from tests.support.foreign import ROOT, make_wheel, write_project
from unlost.chaos import (
    Chaos,
    Conserved,
    CrashAt,
    EffectsOnce,
    KillWorkers,
    NoBystanders,
    NothingLost,
    StopWorkers,
)
from unlost.chaos.nemesis import Nemesis
from unlost.chaos.places import Places
from unlost.cli import main
from unlost.testing.brokers.docker import OWNER_LABEL, connect_engine
from unlost.testing.brokers.owner import own_name
from unlost.testing.images import build_image

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

SECOND = timedelta(seconds=1)
NEMESES: list[Nemesis] = [
    KillWorkers(every=2.5 * SECOND),
    CrashAt(times=2, points=("committed", "acking")),
    StopWorkers(times=3, lasting=2 * SECOND),
]


@pytest.fixture
def project(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example project, importable here as for its own tests."""
    require("docker", request.config)
    made = write_project(tmp_path / "project")
    monkeypatch.syspath_prepend(str(made))
    return made


@pytest.fixture
def image(project: Path, tmp_path: Path) -> str:
    """An image with the project in it, and this checkout's wheel."""
    base = subprocess.run([ROOT / "scripts" / "python-image"], capture_output=True, text=True, check=True)
    return build_image(
        project,
        tag="unlost-test/bank:latest",
        environ=os.environ,
        wheels=[make_wheel(sys.executable, tmp_path)],
        base=base.stdout.strip(),
    )


@pytest.mark.long
def test_transfers_survive_in_containers(project: Path, image: str, tmp_path: Path) -> None:
    """Containers are killed and paused, processes in them die, too; each transfer is booked once."""
    from bank.workload import Transfers  # type: ignore[import-not-found]

    assert project.is_dir()
    with Places({**os.environ, "UNLOST_BROKER": "docker"}) as places:
        kit = Chaos(places, tmp_path / "chaos", environ=os.environ, seed=7)
        run = kit.run(
            app="bank.app:app",
            workload=Transfers(rate=25, duration=15 * SECOND),
            nemeses=NEMESES,
            image=image,
        )
    run.check(NothingLost(), EffectsOnce(), NoBystanders(), Conserved())
    print(run.summary())
    assert set(run.injuries) == {"kill", "crash", "stop_worker"}
    with connect_engine(os.environ) as engine:
        mine = {"label": f"{OWNER_LABEL}={own_name()}"}
        left = engine.containers.list(all=True, filters=mine)
    assert not [container.name for container in left if "worker" in container.name]


@pytest.mark.long
def test_the_command_runs_workers_in_containers(project: Path, image: str) -> None:
    """The app that is in the image works; the one on this host has changed since, and would not."""
    app = project / "bank" / "app.py"
    app.write_text(app.read_text().replace("time.sleep(0.1)", "raise SystemError('not in a container')"))
    done = subprocess.run(
        [
            *(Path(sys.executable).parent / "unlost", "chaos", "run", "--json"),
            *("--app", "bank.app:app", "--workload", "bank.workload:Transfers", "--image", image),
            *("--minutes", "0.2", "--rate", "15", "--nemesis", "KillWorkers:every=3"),
            *("--env", "UNLOST_LEASE=4"),
        ],
        cwd=project,
        env={**os.environ, "UNLOST_BROKER": "docker"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown = json.loads(done.stdout)
    assert (shown["verdict"], shown["executed"], shown["dead_lettered"]) == ("valid", shown["confirmed"], 0)
    assert shown["kills"] > 0


def test_an_image_that_there_is_not_is_said_at_once(project: Path) -> None:
    """Before a broker is started, with what to do about it."""
    done = CliRunner().invoke(
        main,
        [
            *("chaos", "run", "--app", "bank.app:app", "--workload", "bank.workload:Transfers"),
            *("--json", "--image", "unlost-test/there-is-not:any"),
        ],
        env={"UNLOST_BROKER_URL": "amqp://guest:guest@127.0.0.1:1"},
    )
    assert project.is_dir()
    assert done.exit_code == 2
    assert "has no image unlost-test/there-is-not:any for the workers: pull it, or build it" in done.output
    assert "kept in" not in done.output
