"""Stopping a worker: what waits goes back at once and uncharged, what runs gets its time, and no more.

Celery's soft stop sleeps in the signal's handler for the whole grace, with no ack and no heartbeat in the
meantime, and keeps what it has prefetched until its end. Ours runs on the worker's loop:

=================  ====================================================================================
signal             what follows
=================  ====================================================================================
SIGTERM            warm: what waits goes back, what runs ends in its own time
SIGQUIT            soft: as above, for ``shutdown_grace``; then running bodies are signalled, a moment later
                   killed; their leases end uncounted, and their deliveries go back
=================  ====================================================================================

``basic.nack`` is what RabbitMQ does not count from 4.3 on. Before, every way back counts the same.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from amqp import spec
from billiard.common import REMAP_SIGTERM
from celery import platforms
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.platforms import EX_OK
from celery.worker import state

if TYPE_CHECKING:
    from unlost.tasks.consumer import ReliableConsumer
    from unlost.tasks.runtime import Runtime

logger = logging.getLogger(__name__)

#: How long a body that is told to end may take to unwind before it is killed.
UNWINDING = timedelta(seconds=2)

#: How long to wait, after that, for the leases of what was stopped to be ended.
SETTLING = timedelta(seconds=3)

TICK = timedelta(milliseconds=100)

#: How long the loop may take to do what it is asked; under solo a body keeps it from its turn.
ASK_AGAIN = timedelta(seconds=1)


def nack_log_error(message: Any, errors: tuple[type[Exception], ...]) -> None:
    """Give a delivery back uncharged, or say why not: a connection that is gone gives all back."""
    try:
        # py-amqp has no method for it; the last two are "multiple" and "requeue".
        message.channel.send_method(spec.Basic.Nack, "Lbb", (message.delivery_tag, False, True))
    except errors as exc:
        logger.warning("could not give back delivery %s: %r", message.delivery_tag, exc)
    else:
        message._state = "REQUEUED"


def give_back(requests: Iterable[Any], errors: tuple[type[Exception], ...]) -> int:
    """Give back deliveries that were never started, oldest first, and return how many.

    One that a process has begun in this very moment runs all the same: the ledger lets one of the two run.
    """
    unsettled = [request for request in requests if not request.acknowledged]
    for request in sorted(unsettled, key=lambda request: int(request.message.delivery_tag)):
        request.acknowledged = True
        nack_log_error(request.message, errors)
    return len(unsettled)


def waiting() -> list[Any]:
    """Return the requests of this worker that no process has accepted."""
    known = {*state.reserved_requests, *state.scheduled_requests}
    return [request for request in known if request not in state.active_requests]


def leave_group(**_signal: Any) -> None:
    """Take this child out of the worker's process group, so that a signal to the group is the parent's.

    A supervisor's SIGTERM to the whole group would end the tasks that are to be given their time.
    """
    os.setpgid(0, 0)


@runtime_checkable
class _Leased(Protocol):
    def abandon(self) -> None:
        """Let go of what still runs."""


class SoftStop:
    """Stops a worker when its tasks have ended or the grace is over, whichever comes first.

    Args:
        consumer: Whose worker.
        runtime: For the grace, and for what is being settled in the background.
    """

    def __init__(self, consumer: ReliableConsumer, runtime: Runtime) -> None:
        self._consumer = consumer
        self._runtime = runtime
        self._grace = runtime.settings.shutdown_grace
        self._is_asked = False
        self._left: list[Any] = []

    def install(self) -> None:
        """Take Celery's place as handler of SIGQUIT (and of SIGTERM, where that was remapped)."""
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGQUIT", *(["SIGTERM"] if REMAP_SIGTERM == "SIGQUIT" else [])):
                platforms.signals[name] = self._on_signal

    def leave_threads_behind(self) -> None:
        """Exit past threads whose bodies nobody can end; what they have not committed is rolled back."""
        if self._left:
            logging.shutdown()
            os._exit(EX_OK)

    def _on_signal(self, *_frame: Any) -> None:
        # Nothing is written here: the loop may be in the middle of a frame.
        if self._is_asked:
            # Asked twice: now.
            self._grace = timedelta(0)
            return
        self._is_asked = True
        self._do(self._begin)

    def _begin(self) -> None:
        logger.warning("stopping: running tasks have %s to end", self._grace)
        try:
            if not self._is_alone:
                self._consumer.give_back_waiting()
        finally:
            # Whatever a connection that is lost just now raises: the grace has begun.
            self._wait(time.monotonic(), lambda: self._grace, self._end_running)

    def _end_running(self, *, in_time: bool) -> None:
        if in_time:
            state.should_stop = EX_OK
            return
        running = _running()
        for request in running:
            logger.warning("%s: its grace is over", request.humaninfo())
        if isinstance(self._consumer.pool, PreforkPool):
            self._signal(signal.SIGTERM, running)
            self._wait(time.monotonic(), lambda: UNWINDING, self._kill_running)
            return
        self._left = running
        for request in running:
            # A plain task has no lease; its delivery goes back with the connection.
            if isinstance(request, _Leased):
                request.abandon()
        self._wait(time.monotonic(), lambda: SETTLING, self._exit)

    def _kill_running(self, *, in_time: bool) -> None:
        if not in_time:
            self._signal(signal.SIGKILL, _running())
        self._wait(time.monotonic(), lambda: SETTLING, self._exit)

    def _signal(self, number: int, requests: Iterable[Any]) -> None:
        for request in requests:
            request.cancel(self._consumer.pool, signal=number, emit_retry=False)

    def _exit(self, **_in_time: bool) -> None:
        if self._is_alone:
            self.leave_threads_behind()
        state.should_terminate = EX_OK

    def _wait(self, since: float, patience: Callable[[], timedelta], then: Callable[..., None]) -> None:
        """Look again and again until all is settled or too late."""
        in_time = not _running() and self._runtime.is_idle
        if in_time or time.monotonic() - since >= patience().total_seconds():
            self._do(partial(then, in_time=in_time))
        else:
            _after(TICK, self._wait, since, patience, then)

    def _do(self, act: Callable[[], None]) -> None:
        """Have the worker's loop do something, once; where none turns, it is done here.

        A lost connection makes the loop forget what it was asked and when it was to be woken, so it is asked
        again until the thing is done.
        """
        turn = threading.Lock()

        def once() -> None:
            # Never released: whoever comes first does it.
            if turn.acquire(blocking=False):
                act()

        def ask() -> None:
            if turn.locked():
                return
            if self._is_alone:
                once()
            else:
                self._consumer.call_soon(once)
                _after(ASK_AGAIN, ask)

        _after(TICK, ask)

    @property
    def _is_alone(self) -> bool:
        """Whether the loop has ended, as when a warm stop waits for its tasks, or waits for the broker."""
        return self._consumer.loop_is_over or self._consumer.connection is None


def _after(pause: timedelta, act: Callable[..., None], *args: Any) -> None:
    """Do something on a thread of its own: the loop's timers end with its connection."""
    timer = threading.Timer(pause.total_seconds(), act, args)
    timer.daemon = True
    timer.start()


def _running() -> list[Any]:
    """Return what runs and is not settled."""
    return [request for request in tuple(state.active_requests) if not request.acknowledged]
