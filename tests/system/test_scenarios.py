"""The shop under every nemesis, on one node and on three: nothing is lost and nothing happens twice."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.brokers import require
from tests.support.shop import shop_is_importable
from unlost.chaos import (
    Chaos,
    ClockSkew,
    CloseConnections,
    Conserved,
    CrashAt,
    DiskAlarm,
    EffectsOnce,
    ExclusiveEnd,
    FillQueue,
    KillBroker,
    KillNode,
    KillStore,
    KillWorkers,
    LeaderLoss,
    LinkFault,
    LoseBinding,
    MemoryAlarm,
    NoBystanders,
    NothingFromNowhere,
    NothingLost,
    OutOfMemory,
    Partition,
    PauseBroker,
    PauseNode,
    RestartBroker,
    RollingRestart,
    StopApp,
    StopWorkers,
    Workload,
)
from unlost.chaos.nemesis import Nemesis
from unlost.chaos.places import Places

pytestmark = [
    pytest.mark.system,
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.usefixtures("shop_is_importable"),
]

__all__ = ["shop_is_importable"]

SECOND = timedelta(seconds=1)
#: Beside other faults: often enough, and the workers stay up.
KILLS = KillWorkers(every=2 * SECOND, targets=("child",))
RULES = (NothingLost(), NothingFromNowhere(), EffectsOnce(), ExclusiveEnd(), Conserved(), NoBystanders())


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What strikes, where, and for how long messages are published meanwhile."""

    nemeses: Sequence[Nemesis]
    nodes: int = 1
    store: str | None = None
    duration: timedelta = 15 * SECOND
    seed: int = 1


#: Those that run on every release, and in CI.
CORE = {
    "core-workers-die": Scenario(nemeses=[KillWorkers(every=1.5 * SECOND)]),
    "core-broker-dies": Scenario(nemeses=[KillBroker(times=1), KILLS]),
    "core-connections-close": Scenario(nemeses=[CloseConnections(times=3), KILLS]),
    "core-links-break": Scenario(nemeses=[LinkFault(times=6)], duration=25 * SECOND),
}
ONE_NODE = {
    **CORE,
    "crash-points": Scenario(nemeses=[CrashAt(every=0.7 * SECOND)], duration=20 * SECOND),
    "workers-stop": Scenario(nemeses=[StopWorkers(times=2, lasting=10 * SECOND)], duration=30 * SECOND),
    "clocks-wrong": Scenario(nemeses=[ClockSkew(times=3), KILLS], duration=25 * SECOND),
    "no-memory": Scenario(nemeses=[OutOfMemory(times=8, lasting=SECOND)], duration=20 * SECOND),
    "broker-restarts": Scenario(nemeses=[RestartBroker(times=1), StopApp(times=1)], duration=30 * SECOND),
    "broker-pauses": Scenario(nemeses=[PauseBroker(times=2, lasting=5 * SECOND)], duration=25 * SECOND),
    "alarms": Scenario(nemeses=[MemoryAlarm(times=1), DiskAlarm(times=1), KILLS], duration=40 * SECOND),
    "queue-full": Scenario(nemeses=[FillQueue(times=2), KILLS]),
    "binding-lost": Scenario(nemeses=[LoseBinding(times=2), KILLS], duration=20 * SECOND),
    "store-dies": Scenario(
        nemeses=[KillStore(times=2), LinkFault(links=("store",), times=4), KILLS],
        store="postgresql",
        duration=30 * SECOND,
    ),
}
THREE_NODES = {
    "node-dies": Scenario(nemeses=[KillNode(times=1), KILLS], nodes=3, duration=25 * SECOND),
    "leader-dies": Scenario(nemeses=[LeaderLoss(times=1), KILLS], nodes=3, duration=25 * SECOND),
    "node-pauses": Scenario(nemeses=[PauseNode(times=1), KILLS], nodes=3, duration=25 * SECOND),
    "partition": Scenario(nemeses=[Partition(times=1)], nodes=3, duration=25 * SECOND),
    "leader-cut-off": Scenario(
        nemeses=[Partition(times=1, of="leader"), KILLS], nodes=3, duration=25 * SECOND
    ),
    "ring": Scenario(nemeses=[Partition(times=1, of="ring"), KILLS], nodes=3, duration=25 * SECOND),
    "rolling-restart": Scenario(nemeses=[RollingRestart(times=1), KILLS], nodes=3, duration=25 * SECOND),
}


@pytest.fixture(scope="session")
def places(request: pytest.FixtureRequest) -> Iterator[Places]:
    """Brokers of one provider for all scenarios, which heal what they injure."""
    require(request.param, request.config)
    with Places({**os.environ, "UNLOST_BROKER": request.param}) as made:
        yield made


@pytest.mark.parametrize("name", CORE)
@pytest.mark.parametrize("places", ["local", "docker"], indirect=True)
def test_core(places: Places, name: str, tmp_path: Path) -> None:
    """What every release must survive."""
    survive(places, CORE[name], tmp_path)


@pytest.mark.parametrize("name", [name for name in ONE_NODE if name not in CORE])
@pytest.mark.parametrize("places", ["docker"], indirect=True)
def test_one_node(places: Places, name: str, tmp_path: Path) -> None:
    """Every nemesis of workers, links, store and a single node."""
    survive(places, ONE_NODE[name], tmp_path)


@pytest.mark.parametrize("name", THREE_NODES)
@pytest.mark.parametrize("places", ["docker"], indirect=True)
def test_three_nodes(places: Places, name: str, tmp_path: Path) -> None:
    """Every nemesis of a cluster."""
    survive(places, THREE_NODES[name], tmp_path)


def survive(places: Places, scenario: Scenario, folder: Path) -> None:
    """Run a scenario and check everything."""
    kit = Chaos(
        places,
        folder / "chaos",
        environ=os.environ,
        seed=scenario.seed,
        nodes=scenario.nodes,
        store=scenario.store,
    )
    run = kit.run(
        app="shop.app:app",
        workload=orders(scenario.duration),
        nemeses=scenario.nemeses,
        environment={
            "UNLOST_LEASE": "6",
            "UNLOST_CONNECT_PATIENCE": "60",
            "UNLOST_PUBLISH_PATIENCE": "60",
        },
        # A queue that is full when a delay ends is tried again by the broker after three to six minutes.
        patience=timedelta(minutes=10),
    )
    run.check(*RULES)
    print(run.summary())


def orders(duration: timedelta) -> Workload:
    """Return orders that keep the workers busy, of which some are declined and some fail at first."""
    from shop.workload import Orders

    return Orders(
        rate=8, duration=duration, threads=2, work_ms=70, linger_ms=40, declined_every=25, flaky_every=10
    )
