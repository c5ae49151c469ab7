"""``unlost.install``: the one call that makes a Celery app reliable."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celery import Celery
from celery.exceptions import WorkerShutdown
from celery.signals import worker_init

from unlost import config
from unlost.broker.publisher import Publisher
from unlost.claims.check import ClaimCheck
from unlost.config import Settings, Signing
from unlost.core.ports import Ledger, Throttle
from unlost.core.retry import ONCE, RetryPolicy
from unlost.errors import ConfigurationError, StoreUnavailable
from unlost.idempotency.none import NoStore
from unlost.idempotency.open import database_of, open_store
from unlost.tasks import remote  # noqa: F401 - registers its commands, for clients too
from unlost.tasks.gates import gates_of
from unlost.tasks.leases import LeaseKeeper
from unlost.tasks.runtime import Runtime, attach, has_runtime, runtime_of
from unlost.tasks.settings import EXIT_CONFIGURATION, celery_settings, refuse_contradictions
from unlost.tasks.task import ReliableTask, refuse_unsafe
from unlost.throttle.open import open_throttle
from unlost.topology.model import Topology

logger = logging.getLogger(__name__)

AMQP_CLASS = "unlost.tasks.amqp:ReliableAMQP"
CONTROL_CLASS = "unlost.tasks.control:ReliableControl"


def install(
    app: Celery,
    *,
    topology: Topology | str | Path,
    store: str | None = None,
    retries: RetryPolicy | None = None,
    settings: Settings | Mapping[str, object] | None = None,
    signing: Signing | None = None,
) -> Runtime:
    """Install unlost on a Celery app: safe settings, confirmed publishing, the ledger.

    Call it where the app is made, after its own settings and before its first publish.

    Args:
        app: The application.
        topology: What the broker looks like, or the folder that says so.
        store: SQLAlchemy URL of the ledger; put the business tables into the same database.
        retries: The retry policy of tasks that have none; without it their failures are dead-lettered
            at once.
        settings: A :class:`unlost.config.Settings`, or its fields; what is not given comes from
            ``UNLOST_*`` variables.
        signing: Keys with which every message is signed and verified; the settings' own when not given.

    Returns:
        What was installed: settings, topology, ledger, publisher.

    Raises:
        ConfigurationError: The app has a setting that contradicts a guarantee, or was installed before.
        TopologyError: The topology is wrong, or a registered task names a queue it does not have.
        StoreUnavailable: The store cannot be opened.
    """
    if has_runtime(app):
        raise ConfigurationError(f"unlost is installed on app {app.main!r} already: call install once")
    chosen = settings if isinstance(settings, Settings) else config.load(settings)
    if store is not None:
        chosen = chosen.model_copy(update={"store": store})
    if signing is not None:
        chosen = chosen.model_copy(update={"signing": signing})
    shape = topology if isinstance(topology, Topology) else Topology.load(topology)
    ours = celery_settings(shape, chosen)
    refuse_contradictions(app, ours)
    app.conf.update(ours)
    app.unlost_settings = ours
    runtime = _runtime(app, shape, chosen, retries)
    attach(app, runtime)
    _use_our_amqp(app)
    _check_registered_tasks(app, runtime)
    _check_again_at_start(app)
    _warn_of_what_is_off(chosen)
    return runtime


def _runtime(app: Celery, topology: Topology, settings: Settings, retries: RetryPolicy | None) -> Runtime:
    unguarded = "lease" in settings.dangerously_without
    ledger = open_store(settings.store, lease=settings.lease, unguarded=unguarded)
    try:
        ledger.create_schema()
        throttle = _beside(ledger, settings)
    except StoreUnavailable as exc:
        raise StoreUnavailable(f"{ledger!r} cannot be opened: {exc}. Check the path and its rights.") from exc
    return Runtime(
        settings=settings,
        topology=topology,
        ledger=ledger,
        publisher=Publisher(
            app.connection_for_write(),
            confirm_timeout=settings.confirm_timeout,
            patience=settings.publish_patience,
            connect_patience=settings.connect_patience,
            confirms="confirms" not in settings.dangerously_without,
        ),
        retries=retries or RetryPolicy(stop=ONCE),
        leases=LeaseKeeper(ledger, settings.lease),
        claims=_claims(settings, ledger),
        seal=settings.signing.seal() if settings.signing is not None else None,
        throttle=throttle,
    )


def _beside(ledger: Ledger, settings: Settings) -> Throttle | None:
    """Make ready what stands beside a ledger, and return the state of breakers and limits."""
    if isinstance(ledger, NoStore):
        return None
    database = database_of(ledger)
    if database is not None:
        from unlost.outbox.store import OutboxStore

        # In the ledger's own database: what a unit of work publishes commits with it.
        OutboxStore(database).create_schema()
    return open_throttle(settings.store, database)


def _claims(settings: Settings, ledger: Ledger) -> ClaimCheck | None:
    if settings.claim_store is None:
        return None
    from unlost.claims.stores import open_claims

    store = open_claims(settings.claim_store, database_of(ledger))
    return ClaimCheck(store, settings.claim_above, settings.claim_retention)


def _use_our_amqp(app: Celery) -> None:
    """Make ``app.amqp`` and ``app.control`` ours, also where something has touched Celery's already."""
    app.amqp_cls = AMQP_CLASS
    app.control_cls = CONTROL_CLASS
    for name in ("amqp", "control"):
        app.__dict__.pop(name, None)


def _check_registered_tasks(app: Celery, runtime: Runtime) -> None:
    registered: Mapping[str, Any] = app._tasks
    reliable = [task for task in registered.values() if isinstance(task, ReliableTask)]
    for task in reliable:
        refuse_unsafe(type(task), runtime)
    gates_of(app, reliable)


def _check_again_at_start(app: Celery) -> None:
    """Check when a worker starts: ``config_from_object`` after ``install`` throws every setting away."""

    def check(sender: Any, **_: Any) -> None:
        if sender.app is not app:
            return
        try:
            refuse_contradictions(app)
            _check_registered_tasks(app, runtime_of(app))
        except ConfigurationError as exc:
            logger.critical("%s", exc)
            # A signal's receivers may raise what they like, and it is only logged; this is no Exception.
            raise WorkerShutdown(EXIT_CONFIGURATION) from exc

    worker_init.connect(check, weak=False)


def _warn_of_what_is_off(settings: Settings) -> None:
    if settings.dangerously_without:
        names = ", ".join(sorted(settings.dangerously_without))
        logger.warning("unlost runs WITHOUT %s: tasks will be lost or repeated", names)
