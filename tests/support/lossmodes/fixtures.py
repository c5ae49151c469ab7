"""The fixture and the options of the loss-mode tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.lossmodes.scenario import Stage
from unlost.testing.brokers import Broker

RECORD = "--loss-modes-record"
SWAP = "--loss-modes-swap"


def add_options(parser: pytest.Parser) -> None:
    """Add ``--loss-modes-record`` and ``--loss-modes-swap``."""
    parser.addoption(RECORD, metavar="DIR", help="write what each loss-mode test saw into this folder")
    parser.addoption(SWAP, action="store_true", help="run plain Celery in place of unlost: tests must fail")


@pytest.fixture
def stage(broker: Broker, tmp_path: Path, request: pytest.FixtureRequest) -> Stage:
    """Where a scenario is run on both sides."""
    return _stage(broker, tmp_path, request)


@pytest.fixture
def own_stage(own_broker: Broker, tmp_path: Path, request: pytest.FixtureRequest) -> Stage:
    """Where a scenario is run that no other test's broker could bear."""
    return _stage(own_broker, tmp_path, request)


def _stage(broker: Broker, tmp_path: Path, request: pytest.FixtureRequest) -> Stage:
    records = request.config.getoption(RECORD)
    name = f"{request.path.name}::{request.function.__name__}"
    return Stage(
        broker,
        tmp_path,
        test=name,
        records=Path(records) if records else None,
        swapped=request.config.getoption(SWAP),
    )
