"""The application: parcels that must each be shipped once."""

from __future__ import annotations

import time
from typing import Any

from celery import Celery
from sqlalchemy import Column, Integer, MetaData, Table, insert

import unlost
from unlost.topology.model import Topology, WorkQueue

TOPOLOGY = Topology(name="parcels", queues={"parcels.work": WorkQueue()})

#: No unique constraint: a second shipment must show.
shipments = Table("shipments", MetaData(), Column("id", Integer, primary_key=True), Column("parcel", Integer))

app = Celery("parcels")
runtime = unlost.install(app, topology=TOPOLOGY)
shipments.metadata.create_all(runtime.engine)


@app.task(base=unlost.ReliableTask, bind=True, name="parcels.ship", queue="parcels.work")
def ship(self: Any, parcel: int) -> None:
    """Ship a parcel."""
    time.sleep(0.2)
    with self.unit_of_work() as work:
        work.connection.execute(insert(shipments).values(parcel=parcel))
