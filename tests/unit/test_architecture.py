"""The rules of the code base that machines can check."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def run(*command: str) -> None:
    """Run a tool in the checkout and show what it said if it failed."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_imports_point_down() -> None:
    """The layers, and who may know Celery, are as import-linter's contracts say."""
    run(str(BIN / "lint-imports"), "--no-cache")


def test_ruff_finds_nothing() -> None:
    """Linting finds nothing."""
    run(str(BIN / "ruff"), "check", "--no-cache", ".")


def test_the_code_is_formatted() -> None:
    """The formatter would change nothing."""
    run(str(BIN / "ruff"), "format", "--check", "--no-cache", ".")


def test_types_are_strict() -> None:
    """Mypy's strict mode passes on library, tests and examples."""
    run(str(BIN / "mypy"), "--no-incremental")


def test_every_public_name_is_documented() -> None:
    """Interrogate finds a docstring on everything public."""
    run(str(BIN / "interrogate"), "--quiet", "src", "tests", "examples")


@pytest.mark.parametrize("module", ["unlost", "unlost.topology.model", "unlost.chaos.checker", "unlost.cli"])
def test_celery_is_not_loaded_by(module: str) -> None:
    """Importing the root, the topology, the checkers or the command line does not load Celery."""
    run(sys.executable, "-c", f"import sys, {module}; sys.exit('celery' in sys.modules)")


WORKER_ON_REDIS = """
import sys
from celery import Celery
import celery.apps.worker
import unlost
import unlost.tasks.consumer
app = Celery(broker="amqp://127.0.0.1:1//")
unlost.install(app, topology=unlost.Topology(name="shop", queues={"orders": None}), store="redis://127.0.0.1:1/0")
@app.task(base=unlost.ReliableTask, name="shop.charge", queue="orders")
def charge(): ...
app.finalize()
unused = {"sqlalchemy", "structlog"} & sys.modules.keys()
sys.exit(f"loaded: {unused}" if unused else 0)
"""


def test_a_worker_whose_ledger_is_in_redis_loads_neither_sqlalchemy_nor_structlog() -> None:
    """It would spend half of the CPU time of its start, after every kill, on what it does not use."""
    run(sys.executable, "-c", WORKER_ON_REDIS)


def test_the_public_names_are_those_we_promise() -> None:
    """``unlost.__all__`` is frozen, and every name in it can be had."""
    import unlost

    assert sorted(unlost.__all__) == [
        "Breaker",
        "Limit",
        "Permanent",
        "ReliableTask",
        "RetryLater",
        "RetryPolicy",
        "Settings",
        "Signing",
        "Topology",
        "install",
        "publishing",
    ]
    for name in unlost.__all__:
        assert getattr(unlost, name) is not None
