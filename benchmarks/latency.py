"""How long a store takes for one task: acquire and complete."""

from __future__ import annotations

import statistics
import time
import uuid
from datetime import timedelta

from unlost.core.ids import Generation, MessageId
from unlost.core.settlement import Delivery, Limits, Run
from unlost.idempotency.holder import make_holder
from unlost.idempotency.open import open_store

ROUNDS = 500
LEASE = timedelta(seconds=15)


def of(url: str) -> tuple[float, float]:
    """Return p50 and p99 in milliseconds, the first twentieth left out."""
    store, taken = open_store(url), []
    store.create_schema()
    for _ in range(ROUNDS):
        delivery = Delivery(
            message=MessageId("bench", uuid.uuid4().hex), generation=Generation(0, 1), holder=make_holder()
        )
        began = time.perf_counter()
        admission = store.acquire(delivery, lease=LEASE, limits=Limits())
        if not isinstance(admission, Run):
            raise TypeError(f"a new message was not granted: {admission}")
        store.complete(delivery.message, admission.row, None)
        taken.append((time.perf_counter() - began) * 1000)
    store.close()
    cuts = statistics.quantiles(taken[ROUNDS // 20 :], n=100)
    return cuts[49], cuts[98]
