"""What ``install`` hangs on the Celery app: settings, topology, store, publisher, the present attempt."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery import Celery

from unlost.broker.publisher import Publisher
from unlost.claims.check import ClaimCheck
from unlost.config import Settings
from unlost.core.message import Outgoing
from unlost.core.ports import Ledger, Throttle
from unlost.core.retry import RetryPolicy
from unlost.core.signing import Seal
from unlost.errors import ConfigurationError
from unlost.idempotency.open import database_of
from unlost.tasks.crashpoints import Points
from unlost.tasks.gates import Traffic
from unlost.tasks.leases import LeaseKeeper
from unlost.tasks.outbox import TaskOutbox
from unlost.tasks.payload import guard
from unlost.tasks.sink import SinkVar
from unlost.topology.model import Topology

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from unlost.tasks.attempt import Attempt

logger = logging.getLogger(__name__)

_ATTRIBUTE = "unlost"

#: One slow publish must not keep the others waiting.
HELPERS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Runtime:
    """One for each installed app. Forked children share it as a value; what it opens is per process."""

    settings: Settings
    topology: Topology
    ledger: Ledger
    publisher: Publisher
    retries: RetryPolicy
    leases: LeaseKeeper
    claims: ClaimCheck | None = None
    #: Signs what is published and verifies what is delivered; ``None`` where messages are not signed.
    seal: Seal | None = None
    #: Shared state of breakers and limits; ``None`` when there is no store.
    throttle: Throttle | None = None
    #: What this worker has in hand of queues behind a breaker or a limit.
    traffic: Traffic = field(default_factory=Traffic)
    points: Points = field(default_factory=Points)
    #: The attempt whose body runs in this context.
    attempt: ContextVar[Attempt | None] = field(
        default_factory=lambda: ContextVar("unlost_attempt", default=None)
    )
    #: What takes the publishes of this context instead of the broker, for a while.
    sink: SinkVar = field(default_factory=lambda: ContextVar("unlost_sink", default=None))
    _helper: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(HELPERS, thread_name_prefix="unlost-settle")
    )
    _in_background: set[Future[object]] = field(default_factory=set)

    @property
    def outbox(self) -> TaskOutbox:
        """Return what writes this app's tasks into a transaction."""
        return TaskOutbox(self.sink, self._kept)

    def _kept(self, message: Outgoing) -> Outgoing:
        message = self.signed(message)
        # With a claim store the relay puts a large payload there, and sees to what is left.
        if self.claims is None:
            guard(message, self.settings)
        return message

    def signed(self, message: Outgoing, since: datetime | None = None) -> Outgoing:
        """Return a message as it is published: signed, where messages are.

        Args:
            message: Our own, or one that was verified.
            since: Since when it counts as signed, if not from now on.
        """
        if self.seal is None:
            return message
        return self.seal.sign(message, since or datetime.now(UTC))

    @property
    def engine(self) -> Engine:
        """Return the SQLAlchemy engine of the store: rows that commit with the done record use it.

        Raises:
            ConfigurationError: The store is no SQL database.
        """
        database = database_of(self.ledger)
        if database is None:
            raise ConfigurationError(f"{self.ledger!r} has no engine: business rows need a SQL store")
        return database.engine

    @property
    def is_dispatching(self) -> bool:
        """Return whether what is published now follows from a task that is done: it cannot be left out."""
        attempt = self.attempt.get()
        return attempt is not None and attempt.dispatching

    def in_background(self, act: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Run what may block (publishes, store writes) for the worker's parent, off its main loop."""
        future = self._helper.submit(act, *args, **kwargs)
        self._in_background.add(future)
        future.add_done_callback(self._in_background.discard)
        future.add_done_callback(_log_failure)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being done in the background."""
        return not self._in_background

    def wait_until_idle(self, patience: timedelta) -> None:
        """Wait until what is done in the background has ended, or for so long."""
        wait(self._in_background.copy(), patience.total_seconds())


def _log_failure(future: Future[Any]) -> None:
    error = future.exception()
    if error is not None:
        logger.error("settling in the background failed", exc_info=error)


def runtime_of(app: Celery) -> Runtime:
    """Return the runtime of an installed app.

    Raises:
        ConfigurationError: ``unlost.install(app, ...)`` was never called.
    """
    runtime: Any = getattr(app, _ATTRIBUTE, None)
    if not isinstance(runtime, Runtime):
        raise ConfigurationError(
            f"the Celery app {app.main!r} has ReliableTasks but unlost is not installed on it: "
            "call unlost.install(app, topology=...) where the app is made"
        )
    return runtime


def has_runtime(app: Celery) -> bool:
    """Return whether unlost is installed on an app."""
    return isinstance(getattr(app, _ATTRIBUTE, None), Runtime)


def attach(app: Celery, runtime: Runtime) -> None:
    """Hang the runtime on its app."""
    setattr(app, _ATTRIBUTE, runtime)
