"""Celery apps with unlost installed, on a test's own vhost and with a ledger of their own."""

from __future__ import annotations

from pathlib import Path

from celery import Celery

import unlost
from unlost.broker.apply import apply
from unlost.broker.management import Management
from unlost.tasks.runtime import runtime_of
from unlost.testing.brokers import Vhost
from unlost.topology.model import Delay, Topology, WorkQueue

WORK = "shop.work"
OTHER = "shop.other"

#: Few delay levels, because each costs time to declare; the longest delay is 15 s.
LEVELS = 4


def shop(levels: int = LEVELS) -> Topology:
    """Build a topology of two work queues."""
    return Topology(name="shop", queues={WORK: WorkQueue(), OTHER: WorkQueue()}, delay=Delay(levels=levels))


def declare(vhost: Vhost, topology: Topology) -> None:
    """Apply a topology to a vhost; when this returns, every queue has a leader."""
    with Management(vhost.management_url, vhost.name) as management:
        apply(topology, management)


def reliable_app(vhost: Vhost, tmp_path: Path, topology: Topology, **settings: object) -> Celery:
    """Make an app on a vhost with unlost installed and its ledger in ``tmp_path``; declares nothing.

    Args:
        vhost: Where it publishes and consumes.
        tmp_path: Holds ``ledger.sqlite``; two apps of one folder share their ledger.
        topology: What to install.
        settings: Fields of :class:`unlost.Settings`.
    """
    app = Celery("shop", broker=vhost.amqp_url, set_as_current=False)
    unlost.install(app, topology=topology, store=f"sqlite:///{tmp_path / 'ledger.sqlite'}", settings=settings)
    return app


def close(app: Celery) -> None:
    """Close what an app has open, so that no socket is left to the garbage collector."""
    runtime = runtime_of(app)
    runtime.publisher.close()
    for engine in getattr(runtime.ledger, "_engines", {}).values():
        engine.dispose()
    app.close()
