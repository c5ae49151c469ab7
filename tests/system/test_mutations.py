"""Mutation controls: the same runs with one guarantee switched off must be judged invalid.

Otherwise the valid verdicts of the runs with all guarantees would prove nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.shop import BURST, KILLS, assert_becomes_invalid, shop_is_importable
from unlost.testing.brokers import Broker

pytestmark = [
    pytest.mark.system,
    pytest.mark.one_broker,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("shop_is_importable"),
]

__all__ = ["shop_is_importable"]


def test_without_late_ack_orders_are_lost(broker: Broker, tmp_path: Path) -> None:
    """Acked before they are done, tasks die with their process."""
    assert_becomes_invalid(broker, tmp_path, "late_ack", "lost", **KILLS)


def test_without_the_lease_effects_happen_twice(broker: Broker, tmp_path: Path) -> None:
    """A task killed between its commit and its ack runs again."""
    assert_becomes_invalid(broker, tmp_path, "lease", "duplicate effect", **KILLS)


def test_without_confirms_orders_are_lost_with_the_broker(own_broker: Broker, tmp_path: Path) -> None:
    """What was written to a dying broker's socket counted as published."""
    assert_becomes_invalid(own_broker, tmp_path, "confirms", "lost", **BURST)
