"""Runs a task's body and decides, in the ledger, how the attempt ended. Publishes nothing.

Called by Celery's tracer in place of the body. What it returns or raises goes on to the tracer, which
records state, dispatches links and calls errbacks; the decision is already in the ledger by then, so a
crash anywhere behind it repeats publishes, never the body.
"""

from __future__ import annotations

import logging
import os
import time
import traceback as tb
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from billiard.common import terminate_handler_fired
from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError, WorkerShutdown, WorkerTerminate
from pydantic import ValidationError

from unlost.core import headers as h
from unlost.core.breaker import Breaker
from unlost.core.clock import epoch_ms, from_epoch_ms
from unlost.core.headers import Failure
from unlost.core.keys import Recorded
from unlost.core.retry import GiveUp, RetryPolicy, TryAgain
from unlost.core.settlement import TOO_OLD, AlreadyDone, Resend
from unlost.core.signing import EXPIRED_SIGNATURE
from unlost.errors import KeyConflict, LeaseLost, StoreError, StoreUnavailable
from unlost.tasks.attempt import Attempt
from unlost.tasks.crashpoints import Point
from unlost.tasks.dependents import tell_ended
from unlost.tasks.inprocess import since_start
from unlost.tasks.keys import Duplicate, KeyHeld, claim
from unlost.tasks.patience import while_store_is_down
from unlost.tasks.results import decode_result, encode_result, is_claimed, text_of
from unlost.tasks.runtime import Runtime

if TYPE_CHECKING:
    from unlost.tasks.task import ReliableTask

logger = logging.getLogger(__name__)

#: The token of a message that had no row.
FIRST_TOKEN = 1

REQUEUE_DELAY = timedelta(seconds=1)


class Fenced(Ignore):
    """Raised to the tracer when somebody else holds the message: no state, no errbacks."""


class RecordedFailure(Exception):
    """It is decided that the message is dead; raised for the tracer, which tells who waits for it."""


class Expired(Exception):
    """The message was to be run before a time that has passed."""


class TooOld(Exception):
    """Nobody can tell whether the message has run."""


class ExpiredSignature(Exception):
    """The message was signed too long ago, and nobody has seen it until now."""


class Spent(Exception):
    """The body asked for one more retry than its own budget has; ``exc`` is what to report.

    It must not go to the retry policy, which would grant another.
    """

    def __init__(self, exc: Exception) -> None:
        super().__init__(str(exc))
        self.exc = exc


class InvalidPayload(Exception):
    """The arguments do not make the task's payload."""


def perform(task: ReliableTask, runtime: Runtime, attempt: Attempt, args: Any, kwargs: Any) -> Any:
    """Run the body, or repeat a recorded outcome, and return what the tracer shall see."""
    if isinstance(attempt.admission, AlreadyDone):
        return _repeat(task, runtime, attempt)
    if isinstance(attempt.admission, Resend):
        failure = attempt.row.failure or Failure(reason="unknown")
        raise RecordedFailure(f"{failure.reason}: {failure.exception_type} {failure.exception}".strip())
    try:
        return _run(task, runtime, attempt, args, kwargs)
    except LeaseLost as exc:
        attempt.fenced = True
        raise Fenced(str(exc)) from exc


def _repeat(task: ReliableTask, runtime: Runtime, attempt: Attempt) -> Any:
    """Return the recorded result of a message that is done, or end as quietly as it ended."""
    _forget_errbacks(task)
    if attempt.row.failure is not None:
        raise Ignore(attempt.row.failure.reason)
    return decode_result(runtime, attempt.row.result)


def _forget_errbacks(task: ReliableTask) -> None:
    """A message that is done has no failure any more, whatever happens to its successors."""
    task.request.errbacks = None


def _run(task: ReliableTask, runtime: Runtime, attempt: Attempt, args: Any, kwargs: Any) -> Any:
    try:
        done = _claim(task, runtime, attempt, args, kwargs)
        if done is not None:
            return _finish_duplicate(task, runtime, attempt, done)
        returned = _invoke(task, attempt, args, kwargs)
        # What a unit of work has recorded stands; the returned value is only compared.
        result = text_of(returned) if attempt.completed else encode_result(runtime, attempt.message, returned)
    except (MemoryError, SystemExit, KeyboardInterrupt, GeneratorExit) as exc:
        if attempt.completed and not _ends_the_worker(exc):
            logger.exception("%s raised after its unit of work had committed: it is done", attempt.message)
            return _finish(task, runtime, attempt)
        _crash(runtime, attempt, exc)
    except LeaseLost:
        raise
    except KeyHeld as exc:
        _let_go(attempt)
        raise LeaseLost(str(exc)) from exc
    except Exception as exc:
        if attempt.completed:
            logger.exception("%s raised after its unit of work had committed: it is done", attempt.message)
            return _finish(task, runtime, attempt)
        ending = _fail(task, runtime, attempt, exc)
        if ending is exc:
            raise
        raise ending from exc
    if attempt.completed:
        _check_result(attempt, result)
    else:
        _complete(runtime, attempt, result)
    return _finish(task, runtime, attempt)


def _claim(task: ReliableTask, runtime: Runtime, attempt: Attempt, args: Any, kwargs: Any) -> Recorded | None:
    """Claim the key; nobody claims anything for a message that is not to run."""
    expires = attempt.headers.get(h.EXPIRES)
    if isinstance(expires, int) and datetime.now(UTC) > from_epoch_ms(expires):
        raise Expired(f"expired at {from_epoch_ms(expires).isoformat()}")
    _refuse_expired_signature(runtime, attempt)
    _refuse_too_old(runtime, attempt)
    try:
        return claim(task, runtime, attempt, args, kwargs)
    except (ValidationError, TypeError) as exc:
        raise InvalidPayload(str(exc)) from exc


def _refuse_too_old(runtime: Runtime, attempt: Attempt) -> None:
    """Refuse a message that is older than the store's memory and unknown to it: it may have run."""
    if attempt.row.token != FIRST_TOKEN and attempt.row.failure is None:
        return
    retention = runtime.settings.retention
    age = timedelta(milliseconds=h.age_ms_of(attempt.headers, int(time.time() * 1000)))
    if age > retention and h.RUN_AGAIN not in attempt.headers:
        raise TooOld(
            f"{attempt.message} has no row and is {age.days} days old, and the store forgets after "
            f"{retention.days}: it may have run; look, and send it back with {h.RUN_AGAIN} to run it"
        )


def _refuse_expired_signature(runtime: Runtime, attempt: Attempt) -> None:
    """Refuse a message that comes for the first time, and too late: somebody may have kept it back.

    Here and not where its signature is verified, because what the ledger knows has come in time: a
    redelivery after the bound must not make a letter of what runs, waits or is done.
    """
    seal = runtime.seal
    if seal is None or attempt.row.token != FIRST_TOKEN:
        return
    if seal.is_expired(attempt.headers, datetime.now(UTC)):
        raise ExpiredSignature(seal.describe_age())


def _finish_duplicate(task: ReliableTask, runtime: Runtime, attempt: Attempt, done: Recorded) -> Any:
    """End a message whose work another has done, as the task says."""
    if task.on_duplicate == "raise":
        raise Duplicate(f"{attempt.message}: the work of its key was done by {done.message}")
    if task.on_duplicate == "ignore":
        # Recorded as quiet by whoever catches it: a message that is done would go on to its links.
        raise Ignore(f"{attempt.message}: the work of its key was done by {done.message}")
    _complete(runtime, attempt, done.result)
    return _finish(task, runtime, attempt)


def _let_go(attempt: Attempt) -> None:
    """End what the attempt still holds; if that fails it expires."""
    try:
        attempt.ledger.release(attempt.row.holder or "")
    except StoreError as exc:
        logger.warning("%s: its lease was not released and will expire: %s", attempt.message, exc)


def _finish(task: ReliableTask, runtime: Runtime, attempt: Attempt) -> Any:
    """Return the result as every later delivery will read it, so that links receive the same."""
    _forget_errbacks(task)
    return decode_result(runtime, attempt.result)


def _complete(runtime: Runtime, attempt: Attempt, result: str | None, quietly: Failure | None = None) -> None:
    patience = runtime.settings.settle_patience
    while_store_is_down(
        lambda: attempt.ledger.complete(attempt.message, attempt.row, result, quietly, attempt.claim),
        patience,
    )
    attempt.result = result
    attempt.completed = True
    runtime.points.reach(Point.COMMITTED, attempt.message)


def _invoke(task: ReliableTask, attempt: Attempt, args: Any, kwargs: Any) -> Any:
    if task.payload is not None:
        try:
            args, kwargs = (task.to_payload(args, kwargs),), {}
        except (ValidationError, TypeError) as exc:
            raise InvalidPayload(str(exc)) from exc
    try:
        return task.run(*args, **kwargs)
    except Exception as exc:
        attempt.speaks_against = _speaks_against(task.breaker, exc)
        raise


def _speaks_against(breaker: Breaker | None, exc: Exception) -> bool:
    """Whether what a body raised speaks against what its task depends on."""
    if breaker is None or isinstance(exc, Ignore | Reject | LeaseLost):
        return False
    cause = exc.exc if isinstance(exc, Retry | Spent) and exc.exc is not None else exc
    return isinstance(cause, SoftTimeLimitExceeded) or breaker.counts(cause)


def _check_result(attempt: Attempt, result: str | None) -> None:
    if result is not None and result != attempt.result and not is_claimed(attempt.result):
        logger.warning(
            "%s returned a value that its unit of work did not record: links and duplicates receive "
            "work.result; assign it inside the block",
            attempt.message,
        )


def _ends_the_worker(exc: BaseException) -> bool:
    """Whether this is Celery stopping the process, and no doing of the body."""
    if isinstance(exc, WorkerShutdown | WorkerTerminate):
        return True
    return isinstance(exc, SystemExit) and bool(terminate_handler_fired())


def _crash(runtime: Runtime, attempt: Attempt, exc: BaseException) -> NoReturn:
    """Turn what would take the worker down into a counted crash of this message alone.

    MemoryError in a body makes the worker's parent exit; SystemExit in a thread pool is never settled.
    """
    if _ends_the_worker(exc):
        raise exc
    logger.error("%s: the body raised %s: counted as a crash", attempt.message, type(exc).__name__)
    attempt.crashed = True
    holder, patience = attempt.row.holder or "", runtime.settings.settle_patience
    while_store_is_down(lambda: attempt.ledger.end_crashed(holder), patience)
    raise Reject(f"body raised {type(exc).__name__}", requeue=True) from exc


def _fail(task: ReliableTask, runtime: Runtime, attempt: Attempt, exc: Exception) -> Exception:
    """Decide how a failed attempt ends, write it, and return what to raise to the tracer."""
    if isinstance(exc, Expired) and task.on_expired == "drop":
        return _drop(task, runtime, attempt, exc)
    if isinstance(exc, Ignore):
        _complete(runtime, attempt, None, quietly=failure_of(exc, "ignored"))
        ignored: Exception = exc
        return ignored
    return decide(runtime, attempt, exc, verdict_of(task.retry_policy or runtime.retries, attempt, exc))


def _drop(task: ReliableTask, runtime: Runtime, attempt: Attempt, exc: Expired) -> Exception:
    """End what has expired without a letter, cancelled for all its copies, and tell who waits for it."""
    generation, patience = attempt.row.generation, runtime.settings.settle_patience
    while_store_is_down(lambda: runtime.ledger.cancel(attempt.message, generation), patience)
    attempt.completed = attempt.expired = True
    logger.warning("%s is dropped, as its task says: %s", attempt.message, exc)
    tell_ended(task.app, attempt.request, TaskRevokedError(str(exc)))
    dropped: Exception = Ignore(str(exc))
    return dropped


def decide(runtime: Runtime, attempt: Attempt, exc: Exception, verdict: TryAgain | GiveUp) -> Exception:
    """Write how a failed attempt ends and return what to raise to the tracer.

    Raises:
        LeaseLost: Somebody took the message over; nothing was written.
    """
    cause: Exception = exc.exc if isinstance(exc, Retry | Spent) and isinstance(exc.exc, Exception) else exc
    ending = _decided(runtime, attempt, cause, verdict)
    if attempt.claim is not None or attempt.journalled:
        # Its key is free again: whoever brings it next does the work.
        _let_go(attempt)
    return ending


def _decided(runtime: Runtime, attempt: Attempt, cause: Exception, verdict: TryAgain | GiveUp) -> Exception:
    ledger, patience = attempt.ledger, runtime.settings.settle_patience
    if isinstance(verdict, TryAgain):
        due = datetime.now(UTC) + verdict.after
        failure, due_ms = failure_of(cause, "retry"), epoch_ms(due)
        attempt.decided = while_store_is_down(
            lambda: ledger.decide_waiting(attempt.message, attempt.ended, due_ms=due_ms, failure=failure),
            patience,
        )
        retry: Exception = Retry(exc=cause, when=verdict.after.total_seconds())
        return retry
    letter = failure_of(cause, verdict.reason)
    attempt.decided = while_store_is_down(
        lambda: ledger.decide_dead(attempt.message, attempt.ended, failure=letter), patience
    )
    # Celery's tracer would tell neither the chord nor the errbacks of a rejected member.
    return RecordedFailure(f"{verdict.reason}: {cause}") if isinstance(cause, Reject) else cause


def verdict_of(policy: RetryPolicy, attempt: Attempt, exc: Exception) -> TryAgain | GiveUp:
    """Return what follows an exception: what it asks for itself, else what the policy says."""
    if isinstance(exc, Retry):
        return TryAgain(delay_of(exc))
    if isinstance(exc, Reject):
        return TryAgain(REQUEUE_DELAY) if exc.requeue else GiveUp("rejected")
    if isinstance(exc, Spent):
        return GiveUp("budget-spent")
    if isinstance(exc, Expired):
        return GiveUp("expired")
    if isinstance(exc, InvalidPayload):
        return GiveUp("invalid-payload")
    if isinstance(exc, TooOld):
        return GiveUp(TOO_OLD)
    if isinstance(exc, ExpiredSignature):
        return GiveUp(EXPIRED_SIGNATURE)
    if isinstance(exc, KeyConflict):
        return GiveUp("key-conflict")
    if isinstance(exc, Duplicate):
        return GiveUp("duplicate")
    try:
        return policy.decide(
            exc,
            attempt=attempt.number,
            since_start=since_start(attempt),
            always=(SoftTimeLimitExceeded, StoreUnavailable),
        )
    except Exception:
        # The application's own wait or stop: it would raise again, and the body must not run for that.
        logger.exception("%s: its retry policy raised", attempt.message)
        return GiveUp("retry-policy-failed")


def delay_of(retry: Retry) -> timedelta:
    """Return how long a raised ``Retry`` wants to wait."""
    when = retry.when
    if isinstance(when, datetime):
        moment = when if when.tzinfo else when.replace(tzinfo=UTC)
        return max(timedelta(0), moment - datetime.now(UTC))
    return timedelta(seconds=float(when or 0))


def failure_of(exc: BaseException, reason: str) -> Failure:
    """Return what the ledger and the letter say about an exception."""
    return Failure(
        reason=reason,
        exception_type=f"{type(exc).__module__}.{type(exc).__qualname__}",
        exception=str(exc),
        traceback="".join(tb.format_exception(exc)),
        worker=f"{os.uname().nodename}:{os.getpid()}",
        failed_at_ms=epoch_ms(datetime.now(UTC)),
    )
