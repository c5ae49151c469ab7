"""``ReliableTask``: the base class that makes a Celery task reliable."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from celery import Task
from celery.exceptions import Retry
from pydantic import BaseModel, ValidationError
from tenacity import Retrying, wait_none
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from unlost.core.breaker import Breaker
from unlost.core.limits import Limit
from unlost.core.retry import RetryPolicy
from unlost.core.standing import Standing
from unlost.core.uniqueness import OnConflict, Unique
from unlost.errors import ConfigurationError, RetryLater
from unlost.idempotency.none import NO_STORE, NoStore
from unlost.tasks import journal, standing
from unlost.tasks import unique as uniqueness
from unlost.tasks.attempt import Attempt
from unlost.tasks.body import Spent, perform
from unlost.tasks.bulk import Bulk, Progress, Renderer, publish_all, refuse_shared_id
from unlost.tasks.crashpoints import Point
from unlost.tasks.inprocess import retrying, since_start
from unlost.tasks.journal import token_of
from unlost.tasks.keys import Key, OnDuplicate, refuse_reuse
from unlost.tasks.patience import OnStoreDown
from unlost.tasks.results import decode_result, encode_result
from unlost.tasks.runtime import Runtime, has_runtime, runtime_of
from unlost.tasks.template import can_fill_in
from unlost.tasks.work import UnitOfWork

logger = logging.getLogger(__name__)

IMMEDIATELY = wait_none()

#: Attributes whose presence makes Celery 5.7 warn at bind; they mean what they say here.
_DEPRECATED_BY_CELERY = ("queue", "priority")


class ReliableTask(Task):
    """A task whose acknowledged publish is executed, or ends as a dead letter; its effect happens once.

    Attributes:
        queue: The declared work queue that its messages go to.
        payload: A pydantic model; ``delay(**fields)`` or ``delay(instance)`` is validated before it is
            published, and ``run`` receives the instance.
        key: What makes two messages the same work: the name of an argument (of the payload's field), a tuple
            of names, a callable that gets all arguments by name, or ``None`` for the task id.
        key_space: Whose keys these are; the task's own name unless tasks are to share them.
        on_duplicate: What becomes of a message whose key's work another has done: ``return`` the recorded
            result (its links run), ``ignore`` it (they do not), or ``raise`` and dead-letter it.
        unique: How long a message keeps others for the same work from being published: ``until_started``,
            ``until_finished``, or a time from its publish on. Decided where it is published.
        unique_by: What is the same work, given like ``key``; ``None``: the key, or without one all arguments.
        unique_lease: After so long, from when it may run, a message that has not ended is in nobody's way.
        on_conflict: What becomes of a publish while another message is in the way: ``skip`` it and return the
            result of that one, ``replace`` that one, which is cancelled if it is not done, or ``raise``.
        on_store_down: Whether the task waits for a store that does not answer (``closed``) or runs, and is
            published, without (``open``): then a copy may run twice.
        secrets: Names of arguments that tools hide when they show a dead letter; fields of type
            ``SecretStr`` are hidden anyway. Nothing is changed in the message.
        retry: A :class:`unlost.core.retry.RetryPolicy`. Without one the app's is used; without that a
            failure is dead-lettered at once. (The method ``self.retry(...)`` keeps working.)
        breaker: When its queue pauses because what the task depends on fails.
        limit: How fast its messages may start, in all workers together.
        on_expired: What becomes of a message that is past its ``expires``: a ``letter`` with the reason
            ``expired``, or ``drop`` it: its outcome is ``cancelled``, which is logged and sent as Celery's
            event ``task-revoked``.
    """

    abstract = True
    Request = "unlost.tasks.request:ReliableRequest"
    # On the class, so that no setting of the app, made before or after install, can change them.
    acks_late = True
    acks_on_failure = False
    reject_on_worker_lost = True

    #: What its workers can do, for those who publish to it.
    redeems_claims: ClassVar[bool] = True

    queue: ClassVar[str | None] = None
    payload: ClassVar[type[BaseModel] | None] = None
    retry_policy: ClassVar[RetryPolicy | None] = None
    secrets: ClassVar[tuple[str, ...]] = ()
    key: ClassVar[Key] = None
    key_space: ClassVar[str | None] = None
    on_duplicate: ClassVar[OnDuplicate] = "return"
    breaker: ClassVar[Breaker | None] = None
    limit: ClassVar[Limit | None] = None
    on_expired: ClassVar[Literal["letter", "drop"]] = "letter"
    unique: ClassVar[Unique | None] = None
    unique_by: ClassVar[Key] = None
    unique_lease: ClassVar[timedelta] = timedelta(days=1)
    on_conflict: ClassVar[OnConflict] = "skip"
    on_store_down: ClassVar[OnStoreDown] = "closed"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        policy = cls.__dict__.get("retry")
        if isinstance(policy, RetryPolicy):
            cls.retry_policy = policy
            # Celery's method of that name comes back into sight.
            del cls.retry
        for name in ("key", "unique_by"):
            if callable(own := cls.__dict__.get(name)):
                # Or it would be bound as a method.
                setattr(cls, name, staticmethod(own))
        if cls.__dict__.get("payload") is not None:
            # The model checks the arguments; run's own signature takes the instance.
            cls.typing = False

    @classmethod
    def bind(cls, app: Any) -> Any:
        """Bind the task class to its app, and refuse a queue that the topology does not have."""
        if has_runtime(app):
            refuse_unsafe(cls, runtime_of(app))
            if "late_ack" in runtime_of(app).settings.dangerously_without:
                cls.acks_late = cls.reject_on_worker_lost = False
        own = {name: cls.__dict__[name] for name in _DEPRECATED_BY_CELERY if name in cls.__dict__}
        for name in own:
            delattr(cls, name)
        try:
            return super().bind(app)
        finally:
            for name, value in own.items():
                setattr(cls, name, value)

    @property
    def _runtime(self) -> Runtime:
        return runtime_of(self.app)

    @property
    def _current(self) -> Attempt | None:
        """Return the attempt whose body is running, if it is this task's."""
        attempt = self._runtime.attempt.get()
        return attempt if attempt and attempt.message.task == self.name else None

    @property
    def attempt(self) -> int:
        """Return the number of this attempt, from 1; attempts of :meth:`retrying` count."""
        current = self._current
        return current.number if current else 1

    @property
    def attempts_left(self) -> int | None:
        """Return how many more attempts the retry policy grants, as of now; ``None`` for no bound."""
        current = self._current
        elapsed = since_start(current) if current else timedelta(0)
        return self._policy.attempts_left(attempt=self.attempt, since_start=elapsed)

    @property
    def _policy(self) -> RetryPolicy:
        return self.retry_policy or self._runtime.retries

    def retry_later(self, reason: str = "", *, after: timedelta | None = None) -> RetryLater:
        """Return what to raise to be tried again, counted, after a delay that the task knows best.

        Args:
            reason: Why, for the log and the letter.
            after: The delay; ``None`` leaves it to the retry policy.
        """
        return RetryLater(reason, after=after)

    def retrying(self, *, stop: stop_base, wait: wait_base = IMMEDIATELY) -> Retrying:
        """Return tenacity's controller for immediate attempts inside ``run``, in the same budget.

        ::

            for attempt in self.retrying(stop=stop_after_attempt(3)):
                with attempt:
                    rate = ask_the_bank()

        Args:
            stop: When to stop trying in process; the policy then decides about a later delivery.
            wait: Seconds between two attempts; the delivery is held meanwhile, so keep it short.

        Raises:
            ConfigurationError: There is no running attempt.
        """
        current = self._current
        if current is None:
            raise ConfigurationError(f"{self.name}: retrying() needs an attempt run by a worker")
        return retrying(self._policy, current, wait=wait, stop=stop)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body: under settlement when a worker's tracer calls, else as a plain call."""
        attempt = self._current if has_runtime(self.app) else None
        if attempt is None or attempt.entered:
            if self.payload is not None:
                args, kwargs = (self.to_payload(args, kwargs),), {}
            return super().__call__(*args, **kwargs)
        attempt.entered = True
        return perform(self, self._runtime, attempt, args, kwargs)

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Publish the task; returns when the broker has confirmed it.

        Raises:
            ConfigurationError: unlost is not installed on the app.
            pydantic.ValidationError: The payload is invalid; nothing was sent.
            NotSerialisable: JSON has no form for an argument; nothing was sent.
            PublishError: See :meth:`unlost.broker.publisher.Publisher.publish`.
            KeyConflict: The key is known to have been used with another payload; nothing was sent.
            UniqueConflict, StoreUnavailable: See :func:`unlost.tasks.unique.publish_unique`.
        """
        runtime = runtime_of(self.app)
        if self.payload is not None:
            args, kwargs = self.dump_payload(args or (), kwargs or {})
        refuse_reuse(self, runtime, args, kwargs)
        publish = super().apply_async
        if not uniqueness.asks(self, runtime):
            return publish(args, kwargs, *more, **options)
        return uniqueness.publish_unique(
            self, runtime, (args, kwargs), more, options, lambda given: publish(args, kwargs, **given)
        )

    def apply_many(
        self,
        items: Iterable[Any],
        *,
        window: int = 1000,
        patience: timedelta | None = None,
        progress: Progress | None = None,
        max_problems: int = 10_000,
        **options: Any,
    ) -> Bulk:
        """Publish one task for each item; returns when each is confirmed, has failed, or is unknown.

        Args:
            items: Tuples of positional arguments, mappings of keyword arguments, or payload models;
                consumed lazily, never more than ``window`` ahead of the confirms.
            window: How many may be unconfirmed at once; memory is bounded by them and by the problems.
            patience: How long to go on while nothing gets through; ``publish_patience`` when not given.
            progress: Called with the result so far, every 1,000 items and at the end.
            max_problems: After so many no more items are taken.
            options: As for ``apply_async``, the same for all: ``queue``, ``priority``, ``countdown``, ...

        Returns:
            How many are confirmed, and each item that failed or is unknown: an item that makes no task
            (an invalid payload, say) is one of them and harms no other. Nothing is raised for them here;
            ``raise_for_problems()`` does.

        Raises:
            ConfigurationError: unlost is not installed, the task is unique, or an option cannot be shared.
            Exception: Whatever ``items`` raises, when all items before it are settled.

        Crash safety:
            A crash leaves up to ``window`` tasks published or not; the ones before them are.
        """
        runtime = self._runtime
        if self.unique is not None:
            raise ConfigurationError(f"{self.name} is unique, which is decided one by one: loop over delay()")
        refuse_shared_id(self.name, options)
        fills_in = can_fill_in(self.app, self, ReliableTask, options)
        render = Renderer(runtime, self, options, fills_in=fills_in)
        return publish_all(
            runtime,
            render,
            items,
            window=window,
            patience=patience,
            progress=progress,
            max_problems=max_problems,
        )

    def outcome(self, task_id: str) -> Standing:
        """Return where one of this task's messages stands, as the store knows it; no result backend is asked.

        Args:
            task_id: What ``delay`` returned the ``id`` of.

        Raises:
            StoreUnavailable: The store cannot be asked, so nothing can be told.
        """
        return standing.outcome_of(
            self._runtime.ledger, self.name, task_id, partial(decode_result, self._runtime)
        )

    def cancel(self, task_id: str) -> bool:
        """Cancel one of this task's messages, for all its copies and attempts, wherever they are now.

        No worker needs to run: it is written to the store, and whoever meets the message acks it unrun. A
        body that runs already goes on, and can no longer commit.

        Returns:
            Whether it is cancelled; false if it was done before.

        Raises:
            StoreUnavailable: The store cannot be asked; it may or may not be cancelled.
        """
        return standing.cancel(self._runtime.ledger, self.name, task_id)

    def dump_payload(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments as the validated payload's fields.

        A link that receives a result it cannot take is not refused here: its predecessor is done, so the
        message travels and ends as a letter where an operator can see it.

        Raises:
            pydantic.ValidationError, TypeError: They make no payload, and no worker is dispatching them.
        """
        try:
            return (), self.to_payload(args, kwargs).model_dump(mode="json")
        except (ValidationError, TypeError):
            if self._runtime.attempt.get() is None:
                raise
            return args, kwargs

    def to_payload(self, args: Any, kwargs: Any) -> BaseModel:
        """Return the payload that these arguments make.

        Raises:
            pydantic.ValidationError: They make none.
            TypeError: There is more than one positional argument, or it is no mapping or model.
        """
        if self.payload is None:
            raise ConfigurationError(f"{self.name} has no payload model")
        if not args:
            return self.payload.model_validate(kwargs)
        if len(args) > 1 or not isinstance(args[0], BaseModel | Mapping):
            raise TypeError(
                f"{self.name} takes one {self.payload.__name__} or its fields, not {len(args)} values"
            )
        given = args[0].model_dump(mode="json") if isinstance(args[0], BaseModel) else dict(args[0])
        return self.payload.model_validate({**given, **kwargs})

    def delay_on_commit(self, place: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Publish the task when a transaction commits; see :func:`unlost.outbox.publish`.

        Args:
            place: The SQLAlchemy ``Session`` or ``Connection`` whose transaction it is.
            *args: As for ``delay``.
            **kwargs: As for ``delay``.
        """
        return self._runtime.outbox.apply_async(place, self, args, kwargs)

    @property
    def idempotency_token(self) -> str:
        """Return a token for an external API's own de-duplication: one for all runs of this piece of work.

        It is the same for every attempt, copy and redrive of the message, and for all messages of its key.

        Raises:
            ConfigurationError: There is no running attempt.
        """
        return token_of(self._running("idempotency_token"))

    def checkpoint(self, name: str, act: Callable[[], Any]) -> Any:
        """Do a step once, and from then on return its recorded result without doing it again.

        For calls of others that no transaction of ours can take back. Between the call's success and the
        record of it lies a moment in which a crash makes the next attempt call again: pass
        :attr:`idempotency_token` along.

        Args:
            name: Of the step, unique in this task.
            act: The step; what it returns must be JSON or a model, and is returned as later runs will see it.

        Raises:
            ConfigurationError: There is no running attempt.
            LeaseLost: An earlier attempt that was taken over is still at it.
        """
        return journal.checkpoint(self._runtime, self._running("checkpoint()"), name, act)

    def _running(self, what: str) -> Attempt:
        attempt = self._current
        if attempt is None:
            raise ConfigurationError(f"{self.name}: {what} needs an attempt run by a worker")
        return attempt

    @contextmanager
    def unit_of_work(self, within: Any = None) -> Iterator[UnitOfWork]:
        """Open the transaction in which the effect and the done record commit together.

        Business rows go through ``work.session`` or ``work.connection``; ``work.publish`` writes tasks into
        the outbox; ``work.result`` is what links and duplicates receive. After the block the message is
        done, whatever the rest of ``run`` does.

        Args:
            within: A session or connection of your own (SQLAlchemy's ``Session``, ``scoped_session`` or
                ``Connection``) on the store's database, whose transaction it shall be: what it holds already
                is committed too. It stays open; a commit inside the block is refused.

        Raises:
            ConfigurationError: There is no running attempt, it had its unit of work, or ``within`` is on
                another database.
            LeaseLost: Somebody took the message over; everything is rolled back.
            StoreUnavailable: The store is down; the attempt is retried.

        Crash safety:
            A crash before the commit leaves nothing; after it, only the successors are dispatched again.
        """
        attempt = self._running("unit_of_work()")
        if attempt.completed:
            raise ConfigurationError(f"{self.name}: a run has one unit of work, and this one had it")
        runtime = self._runtime

        def encode(result: Any) -> str | None:
            attempt.result = text = encode_result(runtime, attempt.message, result)
            return text

        opened = attempt.ledger.unit_of_work(attempt.message, attempt.row, encode, attempt.claim, within)
        with opened as work:
            ours = UnitOfWork(work, runtime.outbox)
            attempt.working = True
            try:
                yield ours
            finally:
                attempt.working = False
            work.result = ours.result
            runtime.points.reach(Point.COMMITTING, attempt.message)
        self._committed()

    def _committed(self) -> None:
        """Note that the unit of work has committed: nothing that follows undoes it."""
        attempt = self._running("unit_of_work()")
        attempt.completed = True
        self._runtime.points.reach(Point.COMMITTED, attempt.message)

    if not TYPE_CHECKING:

        def retry(
            self,
            args=None,
            kwargs=None,
            exc=None,
            throw=True,
            eta=None,
            countdown=None,
            max_retries=None,
            **options,
        ):
            """Celery's own retry, on our path: it only raises; the settlement decides and publishes."""
            attempt = self._current
            if attempt is None:
                return super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)
            if args is not None or kwargs is not None or not throw or options:
                raise ConfigurationError(
                    f"{self.name}: retry() of a ReliableTask repeats the same message; args, kwargs, "
                    "throw=False and message options are not supported: publish another task instead"
                )
            budget = self.max_retries if max_retries is None else max_retries
            if budget is not None and attempt.row.generation.attempt > budget:
                raise Spent(exc or self.MaxRetriesExceededError(f"{self.name}: {budget} retries are spent"))
            delay = self.default_retry_delay if countdown is None else countdown
            raise Retry(exc=exc, when=eta or delay)


def refuse_unsafe(task: type[ReliableTask], runtime: Runtime) -> None:
    """Refuse a task class whose own settings break the promise.

    Raises:
        TopologyError: Its queue is not declared.
        ConfigurationError: It acks early or settles in another way than ours, or may run for too long.
    """
    if task.queue is not None:
        runtime.topology.work_queue(task.queue)
    _refuse_celerys_rate_limit(task)
    if isinstance(runtime.ledger, NoStore):
        _refuse_needing_a_store(task, runtime)
    if (task.breaker or task.limit) and runtime.throttle is None:
        raise ConfigurationError(
            f"task {task.name} has a breaker or a limit, which all workers share in a store, and the app has "
            "none: give install(app, store=...) one, or remove the attribute"
        )
    _refuse_unknown_key(task, "key")
    _refuse_unknown_key(task, "unique_by")
    uniqueness.refuse_contradictions(task, runtime)
    _refuse_slow(task, runtime)
    if "late_ack" in runtime.settings.dangerously_without:
        return
    for name in ("acks_late", "acks_on_failure", "reject_on_worker_lost", "Request"):
        if (found := getattr(task, name)) != (needed := getattr(ReliableTask, name)):
            raise ConfigurationError(
                f"task {task.name}: {name}={found!r} contradicts ReliableTask, which needs {needed!r}: "
                "otherwise a killed process loses the task. Remove the attribute."
            )


def _refuse_celerys_rate_limit(task: type[ReliableTask]) -> None:
    """Refuse what Celery does in each worker's memory, with the messages held there unacked."""
    if getattr(task, "rate_limit", None) is not None:
        raise ConfigurationError(
            f"task {task.name}: rate_limit={task.rate_limit!r} would hold messages in the memory of each "
            "worker, and counts for that worker alone: use limit=unlost.Limit(name=..., rate=..., per=...)"
        )


def _refuse_needing_a_store(task: type[ReliableTask], runtime: Runtime) -> None:
    """Refuse a task that asks for what only a store can remember, or whose queue leaves poison to a store."""
    name = task.queue or next(iter(runtime.topology.queues))
    if not runtime.topology.queues[name].without_store:
        raise ConfigurationError(
            f"task {task.name}: the app has no store ({NO_STORE}) that counts crashes, and on queue {name!r} "
            "the broker does not count them either: declare the queue `without_store: true`, or give "
            "install(app, store=...) a store"
        )
    for name in ("key", "unique"):
        if getattr(task, name) is not None:
            raise ConfigurationError(
                f"task {task.name}: {name}={getattr(task, name)!r} is kept in a store, and the app has none "
                f"({NO_STORE}): give install(app, store=...) one, or remove the attribute"
            )


def _refuse_slow(task: type[ReliableTask], runtime: Runtime) -> None:
    """Refuse a task that may run for longer than the broker leaves a delivery with a worker."""
    queues = runtime.topology.queues
    name = task.queue or next(iter(queues))
    timeout = queues[name].consumer_timeout
    if task.time_limit and timeout and timedelta(seconds=task.time_limit) >= timeout:
        raise ConfigurationError(
            f"task {task.name}: time_limit={task.time_limit} is not below the consumer timeout of its queue "
            f"{name!r}, {timeout}: the broker would take the delivery back while it runs. Raise "
            "consumer_timeout in the topology, or lower the limit."
        )


def _refuse_unknown_key(task: type[ReliableTask], attribute: str) -> None:
    """Refuse a key that the payload does not have."""
    key, payload = getattr(task, attribute), task.payload
    if payload is None or not isinstance(key, str | tuple):
        return
    names = (key,) if isinstance(key, str) else key
    for name in names:
        if name not in payload.model_fields:
            raise ConfigurationError(
                f"task {task.name}: {attribute}={key!r}, but {payload.__name__} has no field {name!r}; "
                f"it has {', '.join(payload.model_fields)}"
            )
