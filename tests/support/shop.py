"""The shop under faults, for the system tests: one run, and what it must or must not prove."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest

from unlost.broker.apply import apply
from unlost.broker.management import Management
from unlost.chaos.checker import Verdict
from unlost.chaos.clock import OFFSET_VARIABLE, offset_ns
from unlost.chaos.demo import example_home
from unlost.chaos.nemesis import CrashAt, FillQueue, KillBroker, KillWorkers, LoseBinding
from unlost.chaos.report import explain
from unlost.chaos.runner import Place, Plan, Result, Run
from unlost.config import Guarantee
from unlost.testing.brokers import Broker, Vhost
from unlost.topology.model import Topology

ROOT = Path(__file__).parents[2]

#: A mutated run that happens to hurt nobody is repeated with other kills.
TRIES = 3


@pytest.fixture
def shop_is_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process import the example application's workload."""
    monkeypatch.syspath_prepend(str(example_home().code))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "shop"]:
        del sys.modules[name]


APP = "shop.app:app"
WORKLOAD = "shop.workload:Orders"


def run(broker: Broker, folder: Path, without: str = "", seed: int = 1, **plan: Any) -> Result:
    """Run the shop under faults and judge it."""
    folder.mkdir()
    with broker.fresh_vhost() as vhost:
        chosen = Plan(
            app=plan.pop("app", APP),
            workload=plan.pop("workload", WORKLOAD),
            options=plan.pop("options", {}),
            environment={**environment(vhost, folder, without), **plan.pop("variables", {})},
            seed=seed,
            **plan,
        )
        return Run(chosen, Place(vhost=vhost, broker=broker, store_url=store_in(folder)), folder)()


@contextmanager
def declared_vhost(broker: Broker) -> Iterator[tuple[Vhost, Topology]]:
    """A fresh vhost with the shop's topology on it."""
    topology = Topology.load(example_home().topology)
    with broker.fresh_vhost() as vhost:
        with Management(vhost.management_url, vhost.name) as management:
            apply(topology, management)
        yield vhost, topology


def store_in(folder: Path) -> str:
    """Return the URL of the shop's store in a folder."""
    return f"sqlite:///{folder / 'shop.sqlite'}"


def environment(vhost: Vhost, folder: Path, without: str = "") -> dict[str, str]:
    """Return the environment of the shop's clients and workers."""
    return {
        **os.environ,
        "PYTHONPATH": f"{example_home().code}:{ROOT}",
        "CELERY_BROKER_URL": vhost.amqp_url,
        "UNLOST_STORE": store_in(folder),
        "UNLOST_CONNECT_PATIENCE": "60",
        OFFSET_VARIABLE: str(offset_ns()),
        "UNLOST_LEASE": "6",
        "UNLOST_DANGEROUSLY_WITHOUT": without,
    }


KILLS: dict[str, Any] = {
    "messages": 120,
    "rate": 12.0,
    "nemeses": [KillWorkers(every=timedelta(milliseconds=700))],
    "options": {"work_ms": 40, "linger_ms": 60, "declined_every": 20, "flaky_every": 10},
}

#: A binding is lost for a while, twice.
UNBOUND: dict[str, Any] = {
    "messages": 120,
    "rate": 12.0,
    "nemeses": [LoseBinding(times=2, lasting=timedelta(seconds=2)), KillWorkers(every=timedelta(seconds=2))],
    "options": {"work_ms": 40},
}

#: Every order waits on the delay path once, and comes back to queues that are full for a while.
FULL: dict[str, Any] = {
    "messages": 120,
    "rate": 15.0,
    "nemeses": [FillQueue(queue="shop.payments", times=2, lasting=timedelta(seconds=3))],
    "options": {"work_ms": 200, "flaky_every": 1},
    # What comes off the delay path into a full queue the broker tries again after three to six minutes.
    "patience": timedelta(minutes=10),
}

#: Orders that have a receipt sent, crashed right before and right after their commit.
RECEIPTS: dict[str, Any] = {
    "app": "tests.support.outboxed:app",
    "workload": "tests.support.outboxed:OrdersAndReceipts",
    "messages": 80,
    "rate": 10.0,
    "nemeses": [CrashAt(points=("committing", "committed"), every=timedelta(milliseconds=700))],
}

BURST: dict[str, Any] = {
    "messages": 600,
    "rate": 100.0,
    "client_threads": 4,
    "nemeses": [KillWorkers(every=timedelta(milliseconds=500)), KillBroker(times=1, lasting=timedelta(0))],
    # Bodies that take most of a child's time, so that some kill certainly hits one.
    "options": {"work_ms": 40},
}


def assert_valid(result: Result, folder: Path) -> None:
    """Check that the run in a folder proves what it should, or show why it does not and how its logs end."""
    if result.judgement.verdict is not Verdict.VALID:
        logs = [f"{log.name}:\n{_end(log)}" for log in sorted((folder / "logs").iterdir())]
        raise AssertionError("\n".join([*explain(result.judgement), *logs]))


def _end(log: Path, lines: int = 120) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _mutated(without: str, plan: dict[str, Any]) -> dict[str, Any]:
    """Switch a guarantee off by its setting, or, where there is none, by a patch."""
    if without in get_args(Guarantee):
        return {**plan, "without": without}
    options = {**plan.get("options", {}), "without": without}
    return {**plan, "workload": "tests.support.mutations:Mutated", "options": options}


def assert_becomes_invalid(broker: Broker, folder: Path, without: str, kind: str, **plan: Any) -> None:
    """Check that a run without a guarantee is judged invalid, with this kind of anomaly."""
    seen = []
    for seed in range(1, TRIES + 1):
        result = run(broker, folder / f"seed-{seed}", seed=seed, **_mutated(without, dict(plan)))
        kinds = {anomaly.kind for anomaly in result.judgement.anomalies}
        seen.append((result.judgement.verdict, kinds))
        if result.judgement.verdict is Verdict.INVALID and kind in kinds:
            return
    raise AssertionError(f"without {without} nothing was {kind} in {TRIES} runs: {seen}")
