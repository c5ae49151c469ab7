"""A ReliableTask in pytest-celery's containers: whatever is killed, each parcel is shipped once."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from types import ModuleType

from pytest_celery import CeleryTestSetup
from sqlalchemy import select

from unlost.testing.waiting import wait_until

PATIENCE = timedelta(minutes=2)
PARCELS = 40


def shipped(parcels: ModuleType) -> Counter[int]:
    """Return how often each parcel was shipped."""
    with parcels.runtime.engine.connect() as connection:
        return Counter(connection.scalars(select(parcels.shipments.c.parcel)))


def publish(parcels: ModuleType) -> None:
    """Publish every parcel; each is confirmed when this returns."""
    for parcel in range(PARCELS):
        parcels.ship.delay(parcel=parcel)


def wait_until_shipped(parcels: ModuleType, count: int) -> None:
    """Wait until so many parcels were shipped."""
    wait_until(lambda: len(shipped(parcels)) >= count, PATIENCE, f"{count} parcels are shipped")


def test_a_killed_worker_loses_no_parcel(celery_setup: CeleryTestSetup, parcels: ModuleType) -> None:
    """One of two worker containers is killed in the middle: the other does its work, and nothing twice."""
    publish(parcels)
    wait_until_shipped(parcels, 5)
    celery_setup.worker_cluster[0].kill()
    wait_until_shipped(parcels, PARCELS)
    assert shipped(parcels) == Counter(range(PARCELS))


def test_killed_workers_go_on_when_they_are_back(celery_setup: CeleryTestSetup, parcels: ModuleType) -> None:
    """All worker containers are killed in the middle, and started again."""
    publish(parcels)
    wait_until_shipped(parcels, 5)
    for worker in celery_setup.worker_cluster:
        worker.kill()
    for worker in celery_setup.worker_cluster:
        worker.restart()
    wait_until_shipped(parcels, PARCELS)
    assert shipped(parcels) == Counter(range(PARCELS))


def test_a_killed_broker_loses_no_parcel(celery_setup: CeleryTestSetup, parcels: ModuleType) -> None:
    """What was confirmed before the broker's container was killed is done when that is back."""
    publish(parcels)
    wait_until_shipped(parcels, 5)
    celery_setup.broker.kill()
    celery_setup.broker.restart()
    wait_until_shipped(parcels, PARCELS)
    assert shipped(parcels) == Counter(range(PARCELS))
