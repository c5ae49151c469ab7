"""Mutation controls: the same runs with one guarantee switched off must be judged invalid.

Otherwise the valid verdicts of the runs with all guarantees would prove nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import broker_letters
from tests.support.shop import (
    BURST,
    FULL,
    KILLS,
    RECEIPTS,
    UNBOUND,
    assert_becomes_invalid,
    assert_valid,
    run,
    shop_is_importable,
)
from unlost.chaos import checker
from unlost.chaos.checker import NothingLost, Verdict
from unlost.testing.brokers import Broker

pytestmark = [
    pytest.mark.system,
    pytest.mark.one_broker,
    pytest.mark.timeout(900),
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


@pytest.mark.long
def test_without_rejecting_lost_workers_orders_are_lost(broker: Broker, tmp_path: Path) -> None:
    """The delivery of a child that was killed is acked."""
    assert_becomes_invalid(broker, tmp_path, "lost_worker_reject", "lost", **KILLS)


@pytest.mark.long
def test_without_mandatory_orders_are_lost_with_a_binding(broker: Broker, tmp_path: Path) -> None:
    """What no queue is bound for is confirmed all the same."""
    assert_becomes_invalid(broker, tmp_path, "mandatory", "lost", **UNBOUND)


@pytest.mark.long
@pytest.mark.parametrize(("receipts", "kind"), [("after", "lost"), ("before", "duplicate effect")])
def test_without_the_outbox_receipts_are_lost_or_sent_twice(
    broker: Broker, tmp_path: Path, receipts: str, kind: str
) -> None:
    """Published after the commit, what follows dies with the process; before it, it is published again."""
    result = run(broker, tmp_path / "run", **RECEIPTS, variables={"RECEIPTS": receipts})
    assert result.judgement.verdict is Verdict.INVALID
    assert {anomaly.kind for anomaly in result.judgement.anomalies} >= {kind}
    wrong = {anomaly.value or "" for anomaly in result.judgement.anomalies if anomaly.kind == kind}
    assert {value.partition("/")[2] for value in wrong} == {"receipt"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("at_least_once", "verdict", "kinds"),
    [(True, Verdict.VALID, set()), (False, Verdict.INVALID, {"lost"})],
    ids=["at-least-once", "at-most-once"],
)
def test_the_brokers_letters_are_lost_unless_they_are_dead_lettered_at_least_once(
    broker: Broker, tmp_path: Path, at_least_once: bool, verdict: Verdict, kinds: set[str]
) -> None:
    """What is rejected while the queue of letters is down comes to it later, or to nothing."""
    if "control" not in broker.can:
        pytest.skip("an external broker's queues are not ours to stop")
    judgement = checker.check(
        broker_letters.run(broker, tmp_path, at_least_once=at_least_once), [NothingLost()]
    )
    assert judgement.verdict is verdict, judgement
    assert {anomaly.kind for anomaly in judgement.anomalies} == kinds


@pytest.mark.long
@pytest.mark.parametrize("plan", [UNBOUND, FULL, RECEIPTS], ids=["unbound", "full", "receipts"])
def test_with_all_guarantees_the_same_runs_are_valid(
    broker: Broker, tmp_path: Path, plan: dict[str, Any]
) -> None:
    """What the controls above lose is kept."""
    assert_valid(run(broker, tmp_path / "run", **plan), tmp_path / "run")
