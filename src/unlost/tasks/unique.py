"""Publishes a task that is to be unique: only if no message for the same work is under way.

The order is *lease* (held by this process) → *publish*, confirmed → *hand over* the lease to the message. A
crash before the hand-over leaves a lease that nobody alive holds, and the next publisher goes on: then two
messages may exist, for a message that nobody is sure of is worth less than one too many.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_random

from unlost.core.ids import Generation, MessageId
from unlost.core.settlement import Delivery, Held, Limits, Row, Run
from unlost.core.uniqueness import Occupant, Unique, holder_of, is_over, lease_of, occupant_of, unique_id
from unlost.errors import ConfigurationError, LeaseLost, StoreError, StoreUnavailable, UniqueConflict
from unlost.idempotency.holder import make_holder
from unlost.idempotency.open import has_one_writer
from unlost.tasks.amqp import due_in
from unlost.tasks.keys import arguments_of, value_of
from unlost.tasks.runtime import Runtime
from unlost.tasks.sink import is_captured

if TYPE_CHECKING:
    from unlost.tasks.task import ReliableTask

logger = logging.getLogger(__name__)

_FIRST = Generation(0, 1)
_NO_LIMITS = Limits(max_crashes=2**31, max_lost=2**31)

#: With one of these another task waits for the message: it cannot be left out in silence.
_SUCCESSORS = ("link", "chain", "chord")

#: The positional arguments of ``apply_async`` behind args and kwargs.
_POSITIONAL = ("task_id", "producer", "link", "link_error", "shadow")

Publish = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class _Place:
    """The record is ours; ``instead_of`` are the messages that ours is to replace."""

    row: Row
    instead_of: tuple[MessageId, ...]


def asks(task: ReliableTask, runtime: Runtime) -> bool:
    """Whether a publish of this task, here and now, is subject to its uniqueness.

    What a settlement dispatches is not: a link follows from a task that is done and cannot be left out.
    """
    return task.unique is not None and not runtime.is_dispatching and not task.app.conf.task_always_eager


def publish_unique(
    task: ReliableTask,
    runtime: Runtime,
    arguments: tuple[Any, Any],
    more: tuple[Any, ...],
    options: Mapping[str, Any],
    publish: Publish,
) -> Any:
    """Publish a message unless there is one for the same work; then do what the task says.

    Args:
        task: What is published.
        runtime: Of its app.
        arguments: Positional and keyword arguments.
        more: Positional arguments of ``apply_async`` behind those.
        options: The others.
        publish: Publishes with the options that it gets; returns when that is confirmed.

    Returns:
        The result of the message that will do the work: of the one that is under way, if ours was skipped.

    Raises:
        UniqueConflict: The task says ``raise``, or others wait for the message that would be skipped.
        StoreUnavailable: Nobody can say whether there is one; nothing was sent.
        ConfigurationError: It would be published in a transaction, or while one keeps us out of the store.
    """
    if is_captured(runtime.sink):
        raise ConfigurationError(
            f"{task.name} is unique, which is decided when it is published: publish it with delay() after "
            "the transaction, or give it a key, which is decided when it runs"
        )
    attempt = runtime.attempt.get()
    if attempt is not None and attempt.working and has_one_writer(runtime.ledger):
        raise ConfigurationError(
            f"{task.name} is unique, and inside unit_of_work() on SQLite nobody else can write to the store: "
            "publish it after the block"
        )
    given = {**dict(zip(_POSITIONAL, more, strict=False)), **options}
    given["task_id"] = given.get("task_id") or str(uuid.uuid4())
    message = MessageId(str(task.name), given["task_id"])
    record = unique_id(task.key_space or str(task.name), _work_of(task, *arguments))
    taking = _Taking(task, runtime, record, message, holder=make_holder())
    try:
        place = taking.take()
    except StoreUnavailable:
        if task.on_store_down != "open":
            raise
        logger.warning("%s is published although nobody can say whether it is unique", message)
        return publish(given)
    if isinstance(place, MessageId):
        return _skip(task, message, place, given)
    if place is None:
        return publish(given)
    return taking.publish_in(place, given, publish)


def _work_of(task: ReliableTask, args: Any, kwargs: Any) -> Any:
    """Return what tells one piece of work from another: ``unique_by``, else the key, else all arguments."""
    arguments = arguments_of(task, args or (), kwargs or {})
    by = task.unique_by if task.unique_by is not None else task.key
    return arguments if by is None else value_of(task, by, arguments)


def _skip(task: ReliableTask, message: MessageId, occupant: MessageId, given: Mapping[str, Any]) -> Any:
    waiting = [name for name in _SUCCESSORS if given.get(name)]
    if task.on_conflict == "skip" and not waiting:
        logger.info("%s is not published: %s is under way for the same work", message, occupant)
        return task.AsyncResult(occupant.id)
    raise UniqueConflict(
        f"{message} is not published: {occupant} is under way for the same work"
        + (f", and skipping it would drop its {' and '.join(waiting)}" if task.on_conflict == "skip" else ""),
        occupant,
    )


@dataclass(frozen=True, slots=True)
class _Taking:
    """One publisher's way to the record of its work."""

    task: ReliableTask
    runtime: Runtime
    record: MessageId
    message: MessageId
    holder: str

    def take(self) -> _Place | MessageId | None:
        """Return the record as ours, or the message in the way, or ``None`` if that is this very one.

        Waits while another publisher has it, which is never longer than a publish takes.
        """
        patience = self.runtime.settings.publish_patience
        replaced: list[MessageId] = []
        try:
            found: _Place | MessageId | None = Retrying(
                retry=retry_if_result(lambda found: found is _BUSY),
                wait=wait_random(0.01, 0.1),
                stop=stop_after_delay(patience.total_seconds()),
            )(self._try, replaced)
        except RetryError:
            raise UniqueConflict(
                f"{self.message} is not published, as another publisher is at the same work for {patience}: "
                "try again",
                None,
            ) from None
        return found

    def _try(self, replaced: list[MessageId]) -> Any:
        ledger = self.runtime.ledger
        delivery = Delivery(message=self.record, generation=_FIRST, holder=self.holder)
        admission = ledger.acquire(delivery, lease=self._publish_time(), limits=_NO_LIMITS)
        if isinstance(admission, Run):
            return _Place(admission.row, tuple(replaced))
        occupant = occupant_of(ledger.read(self.record))
        if not isinstance(admission, Held) or occupant is None:
            return _BUSY
        message = occupant.message
        if message == self.message:
            return None
        if not is_over(self._unique, occupant, admission.remaining, ledger.read(message)):
            if self.task.on_conflict != "replace":
                return message
            replaced.append(message)
        # A compare-and-set: nothing happens if another publisher has put its own message there meanwhile.
        ledger.release(holder_of(message))
        return _BUSY

    @property
    def _unique(self) -> Unique:
        if self.task.unique is None:
            raise ConfigurationError(f"{self.task.name} is not unique")
        return self.task.unique

    def _publish_time(self) -> timedelta:
        settings = self.runtime.settings
        return settings.publish_patience + settings.connect_patience + 2 * settings.confirm_timeout

    def publish_in(self, place: _Place, given: dict[str, Any], publish: Publish) -> Any:
        """Publish, confirmed, hand the record over, and only then cancel what is replaced."""
        # Its confirm is awaited here, also inside a block that awaits many together.
        token = self.runtime.sink.set(None)
        try:
            sent = publish(given)
        except BaseException:
            # Unknown too: nobody may rely on a message that is perhaps not there.
            self._give_up()
            raise
        finally:
            self.runtime.sink.reset(token)
        self._hand_over(place.row, given)
        for replaced in place.instead_of:
            self._cancel(replaced)
        return sent

    def _give_up(self) -> None:
        try:
            self.runtime.ledger.release(self.holder)
        except StoreError as exc:
            logger.warning("%s: its record was not released and will expire: %s", self.message, exc)

    def _hand_over(self, row: Row, given: Mapping[str, Any]) -> None:
        due = due_in(given.get("countdown"), given.get("eta"))
        delay = max(due - datetime.now(UTC), timedelta(0)) if due else timedelta(0)
        lease = lease_of(self._unique, self.task.unique_lease, delay)
        to, note = holder_of(self.message), Occupant(self.message, lease.total_seconds()).note()
        try:
            self.runtime.ledger.hand_over(self.record, row, to=to, lease=lease, note=note)
        except (LeaseLost, StoreUnavailable) as exc:
            # It is published, and that stands; another one for the same work may follow.
            logger.warning("%s is published, but not recorded as unique: %s", self.message, exc)

    def _cancel(self, replaced: MessageId) -> None:
        try:
            if self.runtime.ledger.cancel(replaced, _FIRST):
                logger.info("%s is cancelled: %s is in its place", replaced, self.message)
        except StoreUnavailable as exc:
            logger.warning("%s was to be replaced by %s and runs too: %s", replaced, self.message, exc)


_BUSY = object()


def refuse_contradictions(task: type[ReliableTask], runtime: Runtime) -> None:
    """Refuse values of ``unique`` and its companions that make no sense.

    Raises:
        ConfigurationError: Names the task, the attribute, and what it may be.
    """
    unique, longest = task.unique, runtime.settings.retention
    if isinstance(unique, timedelta):
        _refuse(task, "unique", unique, fits=timedelta(0) < unique <= longest, may_be=_up_to(longest))
    else:
        fits = unique in (None, "until_started", "until_finished")
        _refuse(task, "unique", unique, fits=fits, may_be="'until_started', 'until_finished' or a timedelta")
    fits = task.on_conflict in ("skip", "replace", "raise")
    _refuse(task, "on_conflict", task.on_conflict, fits=fits, may_be="'skip', 'replace' or 'raise'")
    lease = task.unique_lease
    if unique in ("until_started", "until_finished"):
        _refuse(task, "unique_lease", lease, fits=timedelta(0) < lease <= longest, may_be=_up_to(longest))


def _up_to(longest: timedelta) -> str:
    return f"a time above zero and up to the store's retention, {longest}"


def _refuse(task: type[ReliableTask], name: str, value: object, *, fits: bool, may_be: str) -> None:
    if not fits:
        raise ConfigurationError(f"task {task.name}: {name}={value!r}, but it may be {may_be}")
