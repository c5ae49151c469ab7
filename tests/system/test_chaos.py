"""The shop under kills: nothing is lost and nothing happens twice."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.shop import (
    APP,
    BURST,
    KILLS,
    WORKLOAD,
    assert_valid,
    declared_vhost,
    environment,
    run,
    shop_is_importable,
)
from unlost.chaos.crew import Command, Crew
from unlost.testing.brokers import Broker
from unlost.testing.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(600), pytest.mark.usefixtures("shop_is_importable")]

__all__ = ["shop_is_importable"]


@pytest.mark.one_broker
def test_every_order_is_carried_out_once_while_workers_are_killed(broker: Broker, tmp_path: Path) -> None:
    """Children and parents are killed all the time; each order ends in its effects or in a letter."""
    result = run(broker, tmp_path / "run", **KILLS)
    assert_valid(result, tmp_path / "run")
    assert result.figures.kills >= 3
    assert result.figures.dead_lettered == 3 * 6


def test_every_order_survives_a_kill_of_the_broker(own_broker: Broker, tmp_path: Path) -> None:
    """The broker is killed while four threads publish; no acknowledged order is lost."""
    result = run(own_broker, tmp_path / "run", **BURST)
    assert_valid(result, tmp_path / "run")
    assert result.figures.broker_restarts == 1


def test_a_crew_tells_where_its_processes_stand(broker: Broker, tmp_path: Path) -> None:
    """Stacks of parent and children go to the log: what a run that does not drain must tell."""
    with declared_vhost(broker) as (vhost, _):
        command = Command(
            app=APP,
            workload=WORKLOAD,
            options="{}",
            history=tmp_path / "history",
            environment=environment(vhost, tmp_path),
        )
        with Crew(command, size=1, concurrency=1, logs=tmp_path) as crew:
            crew.wait_ready()
            crew.tell_stacks()
            log = tmp_path / "worker-1.log"
            wait_until(
                lambda: log.read_text().count("(most recent call first)") >= 3,
                timedelta(seconds=30),
                "the stacks of the parent's threads and of the child are told",
                why_not=log.read_text,
            )
