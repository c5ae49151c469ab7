"""The shop under kills: nothing is lost and nothing happens twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.shop import BURST, KILLS, assert_valid, run, shop_is_importable
from unlost.testing.brokers import Broker

pytestmark = [pytest.mark.system, pytest.mark.timeout(600), pytest.mark.usefixtures("shop_is_importable")]

__all__ = ["shop_is_importable"]


def test_every_order_is_carried_out_once_while_workers_are_killed(broker: Broker, tmp_path: Path) -> None:
    """Children and parents are killed all the time; each order ends in its effects or in a letter."""
    result = run(broker, tmp_path / "run", **KILLS)
    assert_valid(result)
    assert result.figures.kills >= 5
    assert result.figures.dead_lettered == 3 * 4


def test_every_order_survives_a_kill_of_the_broker(own_broker: Broker, tmp_path: Path) -> None:
    """The broker is killed while four threads publish; no acknowledged order is lost."""
    result = run(own_broker, tmp_path / "run", **BURST)
    assert_valid(result)
    assert result.figures.broker_restarts == 1
