"""The shop under faults, for the system tests: one run, and what it must or must not prove."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from unlost.broker.apply import apply
from unlost.broker.management import Management
from unlost.chaos.checker import Verdict
from unlost.chaos.demo import example_home, letters_of
from unlost.chaos.report import explain
from unlost.chaos.runner import Plan, Result, Run
from unlost.testing.brokers import Broker
from unlost.topology.model import Topology

#: A mutated run that happens to hurt nobody is repeated with other kills.
TRIES = 3


@pytest.fixture
def shop_is_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process import the example application's workload."""
    monkeypatch.syspath_prepend(str(example_home().code))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "shop"]:
        del sys.modules[name]


def run(broker: Broker, folder: Path, without: str = "", seed: int = 1, **plan: Any) -> Result:
    """Run the shop under faults and judge it."""
    topology = Topology.load(example_home().topology)
    folder.mkdir()
    store = f"sqlite:///{folder / 'shop.sqlite'}"
    options = {"store": store, **plan.pop("options", {})}
    with broker.fresh_vhost() as vhost:
        with Management(vhost.management_url, vhost.name) as management:
            apply(topology, management)
        chosen = Plan(
            workload="shop.workload:Orders",
            options=options,
            environment={
                **os.environ,
                "PYTHONPATH": str(example_home().code),
                "CELERY_BROKER_URL": vhost.amqp_url,
                "UNLOST_STORE": store,
                "UNLOST_CONNECT_PATIENCE": "60",
                "UNLOST_LEASE": "6",
                "UNLOST_DANGEROUSLY_WITHOUT": without,
            },
            letters=letters_of(topology),
            seed=seed,
            **plan,
        )
        return Run(chosen, broker, vhost, folder)()


KILLS: dict[str, Any] = {
    "messages": 80,
    "rate": 12.0,
    "kill_every": timedelta(milliseconds=700),
    "restart_broker_at": None,
    "options": {"work_ms": 40, "linger_ms": 60, "declined_every": 20, "flaky_every": 10},
}

BURST: dict[str, Any] = {
    "messages": 600,
    "rate": 100.0,
    "client_threads": 4,
    "kill_every": timedelta(seconds=2),
    "restart_broker_at": 0.6,
    "options": {"work_ms": 0},
}


def assert_valid(result: Result) -> None:
    """Check that the run proves what it should, or show why it does not."""
    assert result.judgement.verdict is Verdict.VALID, "\n".join(explain(result.judgement))


def assert_becomes_invalid(broker: Broker, folder: Path, without: str, kind: str, **plan: Any) -> None:
    """Check that a run without a guarantee is judged invalid, with this kind of anomaly."""
    seen = []
    for seed in range(1, TRIES + 1):
        result = run(broker, folder / f"seed-{seed}", without=without, seed=seed, **plan)
        kinds = {anomaly.kind for anomaly in result.judgement.anomalies}
        seen.append((result.judgement.verdict, kinds))
        if result.judgement.verdict is Verdict.INVALID and kind in kinds:
            return
    raise AssertionError(f"without {without} nothing was {kind} in {TRIES} runs: {seen}")
