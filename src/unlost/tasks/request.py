"""How the worker's parent settles a delivery of a ``ReliableTask``.

==========================================  =====================================================
what the child reported                     what the parent does
==========================================  =====================================================
returned                                    ack (Celery's own ``on_success``)
an end whose publish was confirmed (mark)   ack
``Ignore``                                  ack (Celery's own)
``Reject(requeue=True)``                    requeue (Celery's own)
the child is dead, or hit its hard limit    see it dead, count the crash and end the lease, requeue
the child was stopped with the worker       end the lease uncounted, give back uncharged
nothing: the pool has lost the job          requeue (``tasks/stranded.py``)
anything else                               requeue: nothing that is not recorded may be acked
==========================================  =====================================================

Crashes are counted and leases ended on a helper thread, never on the worker's main loop; the requeue
goes back to the loop (``hub.call_soon`` wakes it). ``on_success`` and ``execute_using_pool`` are not
overridden: Celery 5.7 replaces both in a subclass that it makes of this one (worker/request.py).
"""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.exceptions import Ignore, InvalidTaskError, Reject, TaskRevokedError
from celery.worker.request import Request
from celery.worker.state import task_ready

from unlost.core import headers as h
from unlost.core.claims import waiting_of
from unlost.core.clock import epoch_ms, moment_of
from unlost.core.envelope import problem_of_body, problem_of_depth
from unlost.errors import StoreError
from unlost.idempotency.holder import make_holder
from unlost.tasks.crashpoints import Point
from unlost.tasks.dependents import tell_ended
from unlost.tasks.gatekeeper import is_stopping
from unlost.tasks.gates import SPEAKS_AGAINST
from unlost.tasks.patience import while_store_is_down
from unlost.tasks.received import raw_body_of
from unlost.tasks.runtime import runtime_of
from unlost.tasks.shutdown import nack_log_error
from unlost.tasks.tracer import EXPIRED, SETTLED

logger = logging.getLogger(__name__)

#: How long to watch a killed child die before its lease is ended all the same (fencing holds).
DEATH_WATCH = timedelta(seconds=5)


class ReliableRequest(Request):
    """One delivery, as the worker's parent sees it."""

    acknowledged: bool
    worker_pid: int

    def __init__(self, message: Any, **options: Any) -> None:
        _translate_foreign_times(message, options)
        if h.CLAIM in message.headers:
            # The payload is fetched where it is used: never on the worker's main loop.
            options |= {"body": [[], {}, waiting_of(raw_body_of(message))], "decoded": True}
        elif message.is_copied and not options.get("decoded"):
            # Celery sends the arguments along with the request anyway, so pickle has them already; given
            # the body as it came, the child would decode it a second time.
            options |= {"body": message.payload, "decoded": True}
        super().__init__(message, **options)
        problem = problem_of_body(self._payload) or problem_of_depth(
            self._payload, message.body, message.content_encoding
        )
        if problem is not None:
            raise InvalidTaskError(problem)
        self._runtime = runtime_of(self._app)
        #: Seconds of the monotonic clock.
        self.received = time.monotonic()
        self.queue: str | None = getattr(message, "queue", None)
        self.holder = make_holder()
        self._request_dict[h.HOLDER] = self.holder
        self._request_dict[h.RAW_BODY] = raw_body_of(message)
        #: Whether what the task depends on answered; ``None`` when the delivery's end does not tell.
        self._dependency_ok: bool | None = True
        self._runtime.traffic.begin(self, message.headers["task"], message.delivery_info or {})
        self._reach(Point.RECEIVED)

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Renew the delivery's lease from now on."""
        super().on_accepted(pid, time_accepted)
        self._runtime.leases.add(self.holder, pid)

    def acknowledge(self) -> None:
        """Ack, once; the lease needs no renewal any more."""
        self._let_go()
        self._reach(Point.ACKING)
        super().acknowledge()
        self._reach(Point.ACKED)

    def _reach(self, point: Point) -> None:
        if self._runtime.points.observer is not None:
            self._runtime.points.reach(point, h.message_id_of(self._message.headers))

    def reject(self, requeue: bool = False) -> None:
        """Reject, once; the lease needs no renewal any more."""
        self._let_go()
        super().reject(requeue=requeue)

    def on_failure(
        self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False
    ) -> None:
        """Settle whatever is not a plain return; the table is in the module's docstring."""
        exc = _exception_of(exc_info)
        self._dependency_ok = _verdict_on_dependency(exc_info, exc)
        if self.acknowledged:
            # Revoked while it ran: settled by that, and the child was told to end.
            task_ready(self)
        elif getattr(exc_info, SETTLED, False):
            task_ready(self)
            self.acknowledge()
            if send_failed_event and not isinstance(exc, Ignore):
                self.send_event("task-failed", exception=repr(exc), traceback=exc_info.traceback)
        elif isinstance(
            exc, TimeLimitExceeded | WorkerLostError | SystemExit | KeyboardInterrupt | Terminated
        ):
            self._on_crash(exc)
        elif isinstance(exc, Ignore | Reject):
            if getattr(exc_info, EXPIRED, False):
                self.send_event("task-revoked", terminated=None, signum=None, expired=True)
            super().on_failure(exc_info, send_failed_event, return_ok)
        else:
            self.give_back(f"nothing is recorded of {exc!r}")

    def _let_go(self) -> None:
        """The delivery is with this worker no more."""
        self._runtime.leases.drop(self.holder)
        message = self._message
        task, info = message.headers["task"], message.delivery_info or {}
        self._runtime.traffic.end(self, task, info, ok=self._dependency_ok)

    def give_back(self, why: str) -> None:
        """Requeue the delivery; a copy that runs all the same is absorbed by the ledger."""
        logger.error("%s: %s: given back", self.humaninfo(), why)
        task_ready(self)
        self.reject(requeue=True)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Log a soft limit; a hard one was settled by :meth:`on_failure`, but for gevent's, which is not."""
        if soft:
            super().on_timeout(soft, timeout)
        elif not self.acknowledged:
            self._on_crash(TimeLimitExceeded(timeout))

    def _announce_revoked(self, reason: str, *_details: Any) -> None:
        """Record the message as cancelled, terminal for all its copies; only then ack."""
        if self.acknowledged:
            return
        self.acknowledged = True
        self._dependency_ok = None
        self._let_go()
        task_ready(self)
        self._already_revoked = True
        logger.warning("%s: %s", self.humaninfo(), reason)
        self.send_event("task-revoked", terminated=None, signum=None, expired=False)
        self._runtime.in_background(self._cancel, reason)

    def _cancel(self, reason: str) -> None:
        headers = self._message.headers
        message, generation = h.message_id_of(headers), h.generation_of(headers)
        ledger = self._runtime.ledger
        try:
            is_cancelled = while_store_is_down(
                lambda: ledger.cancel(message, generation), self._runtime.settings.settle_patience
            )
        except Exception:
            # Whatever the store raised: left unsettled, it would be held as long as the connection lasts.
            logger.exception("%s: could not be recorded as cancelled: given back", self.humaninfo())
            self._on_reject(logger, self._connection_errors, True)
            return
        if is_cancelled:
            args, kwargs, embed = self._payload
            request = {**self._request_dict, **(embed or {}), "args": args, "kwargs": kwargs}
            tell_ended(self._app, request, TaskRevokedError(reason))
        self._on_ack(logger, self._connection_errors)

    def _on_crash(self, exc: BaseException) -> None:
        task_ready(self)
        self._dependency_ok = False if isinstance(exc, TimeLimitExceeded) else None
        self._let_go()
        if self.acknowledged:
            return
        self.acknowledged = True
        logger.error("%s: its process is gone: %s", self.humaninfo(), exc)
        kill = self.worker_pid if isinstance(exc, TimeLimitExceeded) else None
        self._runtime.in_background(self._end_lease, kill, count=not self._is_stopped())

    def forget(self) -> None:
        """Let go of what no process has begun, or will begin."""
        task_ready(self)
        self._let_go()

    def abandon(self) -> None:
        """Let go of what still runs in a process that is about to exit: its commit will find no lease."""
        task_ready(self)
        self._runtime.leases.drop(self.holder)
        if not self.acknowledged:
            self.acknowledged = True
            logger.warning("%s: still runs when its worker exits", self.humaninfo())
            self._runtime.in_background(self._end_lease, None, count=False)

    def _announce_cancelled(self, **_emit_retry: bool) -> None:
        """Note that the worker's stop ends it; it is settled when its process is seen dead."""
        self._already_cancelled = True
        self.send_event("task-cancelled")

    def _is_stopped(self) -> bool:
        return bool(self._already_cancelled) or is_stopping()

    def _end_lease(self, kill: int | None, *, count: bool) -> None:
        """See the child dead, end its lease, and only then give the delivery back; that in any case."""
        ledger = self._runtime.ledger
        end = ledger.end_crashed if count else ledger.release
        try:
            if kill is not None:
                kill_and_watch(kill)
            while_store_is_down(lambda: end(self.holder), self._runtime.settings.settle_patience)
        except StoreError:
            logger.exception("%s: its lease could not be ended and will expire", self.humaninfo())
        finally:
            if count:
                self._on_reject(logger, self._connection_errors, True)
            else:
                self._message.on_the_loop(nack_log_error, self._message, self._connection_errors)


def _translate_foreign_times(message: Any, options: dict[str, Any]) -> None:
    """Turn the ``eta`` and ``expires`` of a plain Celery client into our headers.

    With ``eta`` the worker would hold the message and its slot until its own clock says so; what has
    expired it would ack without a trace.
    """
    for headers in (message.headers, options.get("headers")):
        if not isinstance(headers, dict):
            continue
        for theirs, ours in (("eta", h.DUE), ("expires", h.EXPIRES)):
            if (value := headers.get(theirs)) is not None:
                moment = _epoch_ms(theirs, value)
                headers.setdefault(ours, moment)
                # Of an older body Celery has made headers of its own; the child reads the message's.
                message.headers.setdefault(ours, moment)
                headers[theirs] = None


def _epoch_ms(name: str, value: Any) -> int:
    try:
        return epoch_ms(moment_of(value))
    except (TypeError, ValueError) as exc:
        raise InvalidTaskError(f"header {name!r} is no time: {exc}") from exc


def _exception_of(exc_info: ExceptionInfo) -> BaseException:
    exc: BaseException = exc_info.exception
    return exc.exc if isinstance(exc, ExceptionWithTraceback) else exc


def _verdict_on_dependency(exc_info: ExceptionInfo, exc: BaseException) -> bool | None:
    """Return whether an attempt that did not return speaks for or against what its task depends on."""
    if getattr(exc_info, SPEAKS_AGAINST, False):
        return False
    return None if isinstance(exc, Ignore | Reject) or not getattr(exc_info, SETTLED, False) else True


def kill_and_watch(pid: int) -> None:
    """Kill a child and return when it is dead; billiard reaps it (WNOWAIT).

    The parent hears of a hard time limit while the child still runs its body.
    """
    deadline = time.monotonic() + DEATH_WATCH.total_seconds()
    with suppress(ChildProcessError, ProcessLookupError, OverflowError):
        # Refused for what is no child of ours: a greenlet's number, or a pid that was reaped and given away.
        # Billiard kills it, too, and may reap it at any moment.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        os.kill(pid, signal.SIGKILL)
        while time.monotonic() < deadline:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                return
            time.sleep(0.005)
