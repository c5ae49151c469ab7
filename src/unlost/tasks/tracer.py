"""Acts around Celery's tracer: admit the delivery before it, publish what was decided after it.

``task.__trace__`` is the one place that every pool goes through in the process that runs the body. The
order for a failure is decide → publish → mark sent → ack; the ack is the parent's, and it only comes
when the mark on the result says that the publish was confirmed.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import states
from celery.app.task import Context
from celery.app.trace import TraceInfo, trace_ok_t
from celery.exceptions import Ignore, Reject, TaskRevokedError
from celery.utils.serialization import get_pickleable_exception
from tenacity import Retrying, before_sleep_log, retry_if_exception_type, stop_after_delay, wait_exponential

from unlost.core import headers as h
from unlost.core.clock import from_epoch_ms
from unlost.core.headers import Failure
from unlost.core.ids import amqp_message_id
from unlost.core.message import Outgoing
from unlost.core.parking import next_park
from unlost.core.ports import Ledger
from unlost.core.retry import GiveUp, TryAgain
from unlost.core.settlement import (
    Admission,
    AlreadyDone,
    Delivery,
    Held,
    Limits,
    Resend,
    Row,
    Run,
    State,
    Superseded,
    spread_of,
)
from unlost.core.signing import UNSIGNABLE
from unlost.errors import BrokerError, ClaimLost, ConfigurationError, LeaseLost, StoreError, StoreUnavailable
from unlost.idempotency.memory import Unrecorded
from unlost.idempotency.none import NoStore
from unlost.observe.context import TaskContext
from unlost.tasks.amqp import due_of, has_waited, route
from unlost.tasks.attempt import Attempt, NotAdmitted, NotYet, outgoing
from unlost.tasks.body import decide, failure_of, verdict_of
from unlost.tasks.claims import redeem
from unlost.tasks.crashpoints import Point
from unlost.tasks.dependents import tell_ended
from unlost.tasks.gates import SPEAKS_AGAINST
from unlost.tasks.patience import while_store_is_down
from unlost.tasks.runtime import Runtime
from unlost.tasks.task import ReliableTask
from unlost.topology import naming

logger = logging.getLogger(__name__)

#: Attribute on the ExceptionInfo that tells the parent that the attempt's end is published.
SETTLED = "unlost_settled"

#: Attribute on the ExceptionInfo: the message was past its expiry and is dropped, as its task says.
EXPIRED = "unlost_expired"

#: Reason of the letter of a message of which the ledger could not say what it may do.
NOT_ADMITTED = "not-admitted"

#: A delivery that is earlier than this goes back to the delay path: a foreign ``eta``, a delay longer than
#: the path. What has waited there in full is due, whatever this host's clock says: the broker has measured.
EARLY = timedelta(seconds=1)

#: A store that was restarted is found at the second try.
OPEN_AFTER = timedelta(seconds=1)

Tracer = Callable[..., Any]


def wrap(task: ReliableTask, runtime: Runtime, trace: Tracer) -> Tracer:
    """Return a tracer that settles around Celery's."""

    def settle(task_id: str, args: Any, kwargs: Any, request: dict[str, Any] | None = None) -> Any:
        request = {**h.implied(), **(request or {})}
        lost: Exception | None = None
        if h.CLAIM in request and h.RAW_BODY in request:
            try:
                args, kwargs = redeem(runtime, request)
            except Exception as exc:  # noqa: BLE001 - of any file system
                # Raised from here it would be given back, and come again and again without end.
                lost = exc
        attempt = _arrive(task, runtime, request)
        if attempt is None:
            return trace(task_id, args, kwargs, request)
        attempt.lost = lost
        correlation = attempt.correlation_id
        with TaskContext(attempt.message, attempt.row.generation, attempt.queue, correlation):
            settled = _settle(task, runtime, attempt, lambda: trace(task_id, args, kwargs, request))
        runtime.points.reach(Point.SETTLED, attempt.message)
        return settled

    return settle


def _arrive(task: ReliableTask, runtime: Runtime, request: dict[str, Any]) -> Attempt | None:
    """Ask the ledger what this delivery may do; ``None`` for an eager call, which is no delivery."""
    holder = request.pop(h.HOLDER, None)
    body = request.pop(h.RAW_BODY, None)
    if holder is None or body is None:
        return None
    if request.get("headers") is None:
        # Celery would find them itself, taking all that it knows out of a copy of the request one by one.
        request["headers"] = _custom_headers(request) or None
    properties = request.get("properties") or {}
    headers = properties.get("application_headers") or {}
    delivery = Delivery(
        message=h.message_id_of(headers),
        generation=h.generation_of(headers),
        holder=holder,
        budget_start_ms=h.budget_start_of(headers),
    )
    early = _is_early(runtime, headers, request)
    ledger, admission = (runtime.ledger, NotYet()) if early else _admit(task, runtime, delivery)
    return Attempt(
        message=delivery.message,
        ledger=ledger,
        admission=admission,
        row=Row(state=State.LEASED, generation=delivery.generation, token=0)
        if isinstance(admission, Held | NotYet | NotAdmitted)
        else admission.row,
        queue=_queue_of(task, runtime, headers, request),
        headers=headers,
        properties=properties,
        body=body,
        request=request,
        code_version=runtime.settings.code_version,
        successors=_successors(request),
        has_chord=bool(request.get("chord")),
    )


def _custom_headers(request: dict[str, Any]) -> dict[str, Any]:
    """Return the headers that are no part of Celery's protocol: ``request.headers`` of a task."""
    known = _known_to_celery()
    return {name: value for name, value in request.items() if name not in known}


@lru_cache(maxsize=1)
def _known_to_celery() -> frozenset[str]:
    """Return what Celery's ``Context`` does not take for a custom header."""
    return frozenset({*vars(Context), "lang", "task", "argsrepr", "kwargsrepr", "compression"})


def _is_early(runtime: Runtime, headers: Any, request: dict[str, Any]) -> bool:
    due = due_of(headers)
    if due is None or has_waited(runtime.topology, request.get("delivery_info")):
        return False
    return due - datetime.now(UTC) > EARLY


def _successors(request: dict[str, Any]) -> int:
    """Count what the tracer dispatches: each group among the links, all other links at once, the chain."""
    links = request.get("callbacks")
    if not links:
        return int(bool(request.get("chain")))
    groups = sum(1 for link in links if len(links) > 1 and link.get("subtask_type") == "group")
    return groups + (len(links) > groups) + bool(request.get("chain"))


def _admit(
    task: ReliableTask, runtime: Runtime, delivery: Delivery
) -> tuple[Ledger, Admission | NotAdmitted]:
    """Acquire; what the store raises beside being down is kept, for an end that is counted."""
    try:
        return _acquire(task, runtime, delivery)
    except Exception as exc:
        logger.exception("%s: the ledger cannot say what it may do", delivery.message)
        return runtime.ledger, NotAdmitted(exc)


def _acquire(task: ReliableTask, runtime: Runtime, delivery: Delivery) -> tuple[Ledger, Admission]:
    """Acquire; while the store is down the delivery is held and nothing runs, unless the task is open."""
    settings = runtime.settings
    limits = Limits(settings.max_crashes, settings.max_lost)
    runtime.points.reach(Point.ACQUIRING, delivery.message)
    ledger = runtime.ledger
    try:
        admission = while_store_is_down(
            lambda: ledger.acquire(delivery, lease=settings.lease, limits=limits),
            patience=OPEN_AFTER if task.on_store_down == "open" else None,
        )
    except StoreUnavailable as exc:
        logger.warning("%s runs unrecorded, and may run twice: %s", delivery.message, exc)
        ledger = Unrecorded()
        admission = ledger.acquire(delivery, lease=settings.lease, limits=limits)
    runtime.points.reach(Point.ACQUIRED, delivery.message)
    return ledger, admission


def _queue_of(task: ReliableTask, runtime: Runtime, headers: Any, request: dict[str, Any]) -> str:
    """Return the message's own queue; after a delay the routing key is the delay path's."""
    named = headers.get(h.QUEUE)
    if isinstance(named, str) and named in runtime.topology.queues:
        return named
    key = str((request.get("delivery_info") or {}).get("routing_key") or "").rpartition("q:")[2]
    if key in runtime.topology.queues:
        return key
    return task.queue or str(task.app.conf.task_default_queue)


def _settle(task: ReliableTask, runtime: Runtime, attempt: Attempt, trace: Callable[[], Any]) -> Any:
    admission = attempt.admission
    if isinstance(admission, NotYet):
        return _put_back(runtime, attempt, h.strip(attempt.headers), due_of(attempt.headers))
    if isinstance(admission, NotAdmitted):
        return _park(task, runtime, attempt, admission.error)
    if isinstance(admission, Held):
        return _hold(runtime, attempt, timedelta(seconds=admission.remaining))
    if isinstance(admission, Superseded):
        if admission.row.state is State.CANCELLED:
            tell_ended(task.app, attempt.request, TaskRevokedError("cancelled"))
        return _ignored(f"{attempt.message} is carried on by another copy")
    if isinstance(admission, Resend):
        attempt.decided = admission.row
        if admission.row.state is State.WAITING:
            return _publish_decision(runtime, attempt, _ignored("retry published again"))
    if isinstance(admission, Run) and admission.is_takeover:
        return _spread(runtime, attempt)
    if attempt.lost is not None:
        return _without_payload(task, runtime, attempt, attempt.lost)
    token = runtime.attempt.set(attempt)
    try:
        traced = trace()
    except Exception as exc:
        # A hook of the task or the result backend raised through Celery's tracer.
        logger.exception("%s: its tracer raised", attempt.message)
        traced = _trace_of(exc, states.FAILURE)
    finally:
        runtime.attempt.reset(token)
    return _after_trace(task, runtime, attempt, traced)


def _without_payload(task: ReliableTask, runtime: Runtime, attempt: Attempt, lost: Exception) -> Any:
    """End an attempt without its payload; once done, only its successors are missing.

    What is gone makes a letter; whatever else fetching it raised is for the task's retry policy.
    """
    logger.error("%s: its payload was not had", attempt.message, exc_info=lost)
    if isinstance(attempt.admission, AlreadyDone):
        return _hold(runtime, attempt, runtime.settings.hold)
    is_gone = isinstance(lost, ClaimLost)
    verdict = GiveUp("payload-lost") if is_gone else _verdict(task, runtime, attempt, lost)
    if attempt.decided is None:
        try:
            decide(runtime, attempt, lost, verdict)
        except LeaseLost:
            return _hold(runtime, attempt, runtime.settings.lease)
        except StoreError as why:
            return _given_back(f"nothing could be decided: {why}")
    # Only now: another holder may have had the payload, and what it did is not undone by a word of ours.
    if attempt.decided is not None and attempt.decided.state is State.DEAD:
        tell_ended(task.app, attempt.request, lost)
    return _publish_decision(runtime, attempt, _trace_of(lost, states.FAILURE))


def _after_trace(task: ReliableTask, runtime: Runtime, attempt: Attempt, traced: Any) -> Any:
    if attempt.fenced:
        return _hold(runtime, attempt, runtime.settings.lease)
    if attempt.decided is not None:
        return _publish_decision(runtime, attempt, traced)
    if attempt.expired and isinstance(traced.retval, ExceptionInfo):
        setattr(traced.retval, EXPIRED, True)
    if attempt.completed or isinstance(attempt.admission, AlreadyDone):
        return _after_success(runtime, attempt, traced)
    if attempt.crashed:
        return traced
    return _failed_outside_body(task, runtime, attempt, traced)


def _after_success(runtime: Runtime, attempt: Attempt, traced: Any) -> Any:
    """Ack when the successors are confirmed; if their dispatch failed, come back and repeat only that.

    What else went wrong after the commit (a hook, the result backend) does not undo it.
    """
    if traced.info is None or isinstance(traced.info.retval, Ignore):
        return traced
    if attempt.dispatched >= attempt.successors and not attempt.has_chord:
        return _ignored(f"{attempt.message} is done, although {traced.info.retval!r} was raised behind it")
    logger.error("%s is done but its successors could not be dispatched: trying again", attempt.message)
    return _hold(runtime, attempt, timedelta(seconds=1))


def _failed_outside_body(task: ReliableTask, runtime: Runtime, attempt: Attempt, traced: Any) -> Any:
    """Settle a failure of what surrounds the body: a signal receiver, the loader, the result backend."""
    exc = traced.info.retval if traced.info else None
    exc = exc if isinstance(exc, Exception) else RuntimeError(repr(exc))
    try:
        decide(runtime, attempt, exc, _verdict(task, runtime, attempt, exc))
    except LeaseLost:
        return _hold(runtime, attempt, runtime.settings.lease)
    except StoreError as why:
        return _given_back(f"nothing could be decided: {why}")
    return _publish_decision(runtime, attempt, traced)


def _verdict(task: ReliableTask, runtime: Runtime, attempt: Attempt, exc: Exception) -> TryAgain | GiveUp:
    return verdict_of(task.retry_policy or runtime.retries, attempt, exc)


def _publish_decision(runtime: Runtime, attempt: Attempt, traced: Any) -> Any:
    """Publish the retry or the letter, confirmed, then mark it sent; only then may the parent ack."""
    decided = attempt.decided
    if decided is None or decided.decision is None:
        raise ValueError("nothing was decided")
    runtime.points.reach(Point.DECIDED, attempt.message)
    try:
        _publish(runtime, attempt, _decision_message(runtime, attempt, decided))
    except (BrokerError, ConfigurationError) as exc:
        logger.exception("%s: its %s could not be published", attempt.message, decided.state)
        return _given_back(f"publish failed: {exc}")
    runtime.points.reach(Point.PUBLISHED, attempt.message)
    # A mark that fails is no harm: the next delivery publishes once more and its copy is absorbed.
    try:
        attempt.ledger.mark_sent(attempt.message, decided.decision)
    except StoreUnavailable as exc:
        logger.warning("%s: could not be marked as sent: %s", attempt.message, exc)
    if attempt.speaks_against and isinstance(traced.retval, ExceptionInfo):
        setattr(traced.retval, SPEAKS_AGAINST, True)
    return _settled(traced)


def _decision_message(runtime: Runtime, attempt: Attempt, decided: Row) -> Outgoing:
    message_id = amqp_message_id(attempt.message, decided.generation)
    if decided.state is State.WAITING:
        due = from_epoch_ms(decided.due_ms) if decided.due_ms else None
        changed = h.successor(attempt.headers, decided.generation, due)
        if isinstance(attempt.ledger, NoStore):
            changed[h.BUDGET_START] = decided.started_ms
        return outgoing(attempt, *route(runtime.topology, attempt.queue, due), changed, message_id)
    failure = decided.failure or Failure(reason="unknown")
    named = {**attempt.headers, h.QUEUE: attempt.queue}
    changed = h.letter(named, decided.generation, failure, attempt.origin)
    changed[h.CRASHES] = decided.crashes
    changed[h.LOST] = decided.lost
    exchange = naming.dead_letter_exchange_of(runtime.topology.name)
    return outgoing(attempt, exchange, attempt.queue, changed, message_id)


def _park(task: ReliableTask, runtime: Runtime, attempt: Attempt, error: Exception) -> Any:
    """Send what the ledger cannot admit round the delay path; when its patience is over, make it a letter.

    Nothing is decided, since nobody holds the message. It may be done: a letter sent back is then absorbed.
    """
    wait = next_park(h.parks_of(attempt.headers), runtime.settings.park)
    if wait is not None:
        due = datetime.now(UTC) + wait
        return _put_back(runtime, attempt, h.parked(attempt.headers, attempt.queue, due), due)
    generation = h.generation_of(attempt.headers)
    named = {**attempt.headers, h.QUEUE: attempt.queue}
    letter = h.letter(named, generation, failure_of(error, NOT_ADMITTED), attempt.origin)
    exchange = naming.dead_letter_exchange_of(runtime.topology.name)
    message_id = amqp_message_id(attempt.message, generation)
    try:
        _publish(runtime, attempt, outgoing(attempt, exchange, attempt.queue, letter, message_id))
    except (BrokerError, ConfigurationError) as exc:
        logger.exception("%s: its letter could not be published", attempt.message)
        return _given_back(f"publish failed: {exc}")
    tell_ended(task.app, attempt.request, error)
    return _ignored(f"{attempt.message} is a letter: the ledger could not admit it")


def _hold(runtime: Runtime, attempt: Attempt, remaining: timedelta) -> Any:
    """Send the copy to the delay path, uncounted, for the rest of the lease or a growing backoff."""
    holds = attempt.headers.get(h.HOLDS)
    backoff = timedelta(seconds=2 ** min(holds if isinstance(holds, int) else 0, 9))
    wait = min(max(remaining, backoff), runtime.settings.hold) * random.uniform(1.0, 1.2)  # noqa: S311
    due = datetime.now(UTC) + wait
    return _put_back(runtime, attempt, h.held(attempt.headers, due), due)


def _spread(runtime: Runtime, attempt: Attempt) -> Any:
    """Give up the lease that was taken over, and come back at a random time, uncounted."""
    try:
        runtime.ledger.release(attempt.row.holder or "")
    except StoreUnavailable as exc:
        # It then expires, and the next takeover comes later.
        logger.warning("%s: its lease was not released and will expire: %s", attempt.message, exc)
    due = datetime.now(UTC) + spread_of(attempt.row) * random.random()  # noqa: S311
    return _put_back(runtime, attempt, h.held(attempt.headers, due), due)


def _put_back(runtime: Runtime, attempt: Attempt, headers: dict[str, Any], due: datetime | None) -> Any:
    """Send the same generation to the delay path, confirmed, and let the parent ack."""
    message_id = amqp_message_id(attempt.message, h.generation_of(attempt.headers))
    message = outgoing(attempt, *route(runtime.topology, attempt.queue, due), headers, message_id)
    try:
        _publish(runtime, attempt, message)
    except BrokerError as exc:
        logger.exception("%s could not be put back", attempt.message)
        return _given_back(f"it could not be put back: {exc}")
    return _ignored(f"{attempt.message} cannot run now: back at {due}")


def _publish(runtime: Runtime, attempt: Attempt, message: Outgoing) -> None:
    """Publish, again and again: the delivery is held meanwhile, so a missing exchange loses nothing."""
    patience = runtime.settings.settle_patience
    signed = _signed(runtime, attempt, message)
    Retrying(
        retry=retry_if_exception_type(BrokerError),
        wait=wait_exponential(multiplier=0.5, max=10),
        stop=stop_after_delay(patience.total_seconds()),
        before_sleep=before_sleep_log(logger, logging.ERROR),
        reraise=True,
    )(lambda: runtime.publisher.publish(signed, patience=patience))


def _signed(runtime: Runtime, attempt: Attempt, message: Outgoing) -> Outgoing:
    """Sign; what cannot be signed is a letter without: given back, it would come again without end."""
    try:
        return runtime.signed(message)
    except (LookupError, ValueError) as exc:
        logger.exception("%s: its copy cannot be signed", attempt.message)
        exchange = naming.dead_letter_exchange_of(runtime.topology.name)
        if message.exchange == exchange:
            return message
        named = {**attempt.headers, h.QUEUE: attempt.queue}
        generation = h.generation_of(attempt.headers)
        letter = h.letter(named, generation, failure_of(exc, UNSIGNABLE), attempt.origin)
        message_id = amqp_message_id(attempt.message, generation)
        return outgoing(attempt, exchange, attempt.queue, letter, message_id)


def _settled(traced: Any) -> Any:
    if isinstance(traced.retval, ExceptionInfo):
        setattr(traced.retval, SETTLED, True)
    return traced


def _ignored(why: str) -> Any:
    """Return a trace result upon which the parent acks without recording anything."""
    return _settled(_trace_of(Ignore(why), states.IGNORED))


def _given_back(why: str) -> Any:
    """Return a trace result upon which the parent requeues the delivery."""
    return _trace_of(Reject(why, requeue=True), states.REJECTED)


def _trace_of(exc: Exception, state: str) -> Any:
    logger.info("%s", exc)
    exc = get_pickleable_exception(exc)
    try:
        raise exc
    except type(exc):
        return trace_ok_t(ExceptionInfo(internal=True), TraceInfo(state, exc), 0.0, None)
