"""Retries under kills of workers and a restart of the broker: none lost, none early, all the same message."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.retry_run import Outcome, Plan, run
from tests.support.retry_verdict import lateness, most_due_in_a_second, problems_of
from unlost.testing.brokers import Broker

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def assert_exact(outcome: Outcome) -> None:
    """Every message was tried again, not before it was due, as what it was, from its own queue."""
    problems = problems_of(outcome.starts, outcome.sent)
    assert not problems, f"{len(problems)} of {len(outcome.sent)}: {problems[:5]}"


def report(outcome: Outcome) -> str:
    """Return the figures of a run."""
    quiet = lateness(outcome.starts, apart=outcome.outages)
    return (
        f"{len(outcome.sent)} retries, {outcome.kills} kills, {len(outcome.outages)} broker restarts, "
        f"at most {most_due_in_a_second(outcome.starts)} due in a second, started after the broker let go: "
        f"p50 {quiet.quantile(0.5):.2f} s, p99 {quiet.quantile(0.99):.2f} s, most {quiet.quantile(1):.2f} s"
    )


@pytest.mark.one_broker
def test_retries_are_exact_under_kills_and_a_broker_restart(own_broker: Broker, tmp_path: Path) -> None:
    """Retries after up to three seconds, while workers die and the broker is killed once."""
    plan = Plan(messages=120, rate=20, longest=timedelta(seconds=3), kill_every=timedelta(seconds=3))
    outcome = run(plan, own_broker, tmp_path)
    print(report(outcome))
    assert_exact(outcome)
    assert outcome.kills >= 1
    assert len(outcome.outages) == 1


@pytest.mark.long
def test_ten_thousand_retries_are_exact_and_in_time(own_broker: Broker, tmp_path: Path) -> None:
    """Delays from 0 to 30 s, a kill every ten seconds, one of the broker; 99 of 100 start within a second.

    Counted from when the broker lets go of a message (its due time, for a delay of whole seconds) to the
    first line of its body. What was due while the broker was down is late by the outage, and counted apart.
    """
    plan = Plan(
        messages=10_000,
        rate=80,
        longest=timedelta(seconds=30),
        kill_every=timedelta(seconds=10),
        patience=timedelta(seconds=300),
    )
    outcome = run(plan, own_broker, tmp_path)
    print(report(outcome))
    assert_exact(outcome)
    assert outcome.kills >= 5
    assert len(outcome.outages) == 1
    assert lateness(outcome.starts, apart=outcome.outages).quantile(0.99) < 1


@pytest.mark.long
def test_many_retries_that_are_due_together_start_one_after_another(
    own_broker: Broker, tmp_path: Path
) -> None:
    """Two thousand retries that come due within eight seconds: all run, none early; says how late."""
    plan = Plan(
        messages=2000,
        rate=150,
        longest=timedelta(seconds=30),
        together=timedelta(seconds=8),
        kill_every=None,
        restart_broker=False,
    )
    outcome = run(plan, own_broker, tmp_path)
    print(report(outcome))
    assert_exact(outcome)
