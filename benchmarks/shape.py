"""The queue that the benchmarks of whole workers run on."""

from __future__ import annotations

from unlost.idempotency.none import NO_STORE
from unlost.topology.model import Topology, WorkQueue

QUEUE = "bench.work"


def topology_for(store: str) -> Topology:
    """Return the topology of runs with a store: without one the broker has to notice poison."""
    return Topology(name="bench", queues={QUEUE: WorkQueue(without_store=store == NO_STORE)})
