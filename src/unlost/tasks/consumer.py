"""The worker's consumer: refuses to run on a missing topology, and survives whatever is delivered."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import amqp
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.exceptions import WorkerShutdown
from celery.signals import worker_process_init
from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.consumer.control import Control
from celery.worker.consumer.tasks import Tasks
from kombu.common import ignore_errors

from unlost.broker.connection import refusal_of
from unlost.broker.readahead import read_ahead, read_all, read_left
from unlost.broker.unreadable import UNREADABLE, tolerant_frame_handler
from unlost.core import headers as h
from unlost.core.clock import epoch_ms
from unlost.core.envelope import problem_of_headers
from unlost.core.headers import Failure
from unlost.core.message import Outgoing
from unlost.core.parking import next_park
from unlost.core.signing import EXPIRED_SIGNATURE, UNSIGNABLE, Flaw, signed_at_of
from unlost.errors import ConfigurationError, InvalidMessage, TopologyError
from unlost.tasks.amqp import route
from unlost.tasks.attempt import NOT_OURS_TO_REPEAT, origin_of
from unlost.tasks.begun import Begun
from unlost.tasks.check import check_topology
from unlost.tasks.control import recorded, recording
from unlost.tasks.dependents import tell_failed
from unlost.tasks.gatekeeper import Gatekeeper
from unlost.tasks.gates import FETCHED_FROM, gates_of
from unlost.tasks.handover import Handover, drop_taken_back, unread
from unlost.tasks.outcomes import Outcomes
from unlost.tasks.overdue import overdue
from unlost.tasks.patience import while_store_is_down
from unlost.tasks.pools import ignored_by, refuse_limits, refuse_spawn
from unlost.tasks.received import UNPACKED, raw_body_of, receive_raw
from unlost.tasks.request import ReliableRequest
from unlost.tasks.runtime import Runtime, runtime_of
from unlost.tasks.settings import EXIT_CONFIGURATION
from unlost.tasks.shutdown import SETTLING, SoftStop, give_back, leave_group, waiting
from unlost.tasks.stranded import CHECK_EVERY, Watch
from unlost.tasks.streams import renew_after_forks
from unlost.tasks.task import ReliableTask
from unlost.tasks.tracer import wrap
from unlost.topology import naming

logger = logging.getLogger(__name__)

#: The longest pause between two attempts to reach the broker again.
RECONNECT_EVERY = timedelta(seconds=5)


class ReliableConsumer(Consumer):
    """Celery's consumer with our settlement around what it would drop or die of."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._runtime = runtime_of(self.app)
        for step in self.steps:
            if isinstance(step, Tasks):
                # Quorum queues refuse global QoS (540); our queues do not show their type to Celery.
                step.qos_global = lambda _consumer: False
            elif isinstance(step, Control):
                node = step.box.node
                node.handlers = {**node.handlers, "revoke": recording(self._runtime, node.handlers["revoke"])}
        self._stop = SoftStop(self, self._runtime)
        self.loop_is_over = False
        self._watch = Watch()
        self._looking: Any = None
        #: Made before the pool's first process.
        self._begun = Begun()
        #: What stands in for parts of a pool of processes.
        self._stand_ins: tuple[Handover, Outcomes] | None = None
        #: The connection of py-amqp that the loop reads from.
        self._read_from: Any = None
        # In prefork the child rebuilds Celery's tracers just before this signal.
        worker_process_init.connect(self._wrap_tracers, weak=False)
        if isinstance(self.pool, PreforkPool):
            worker_process_init.connect(leave_group, weak=False)
            worker_process_init.connect(self._begun.note_acceptances, weak=False)
            renew_after_forks()

    def connect(self) -> Any:
        """Connect, and on the first connection check that the declared topology is there."""
        try:
            connection = super().connect()
            if self.restart_count <= 0:
                queues = self.app.amqp.queues.consume_from
                refuse_spawn(self.controller)
                refuse_limits(self.pool, self.controller, self.app.tasks.values(), queues)
                check_topology(connection, self._runtime, queues)
                self._watch_gates()
        except TopologyError as exc:
            if self._runtime.settings.topology_check == "warn":
                logger.warning("%s", exc)
                return connection
            raise _shutdown(str(exc)) from None
        except ConfigurationError as exc:
            raise _shutdown(str(exc)) from None
        except (amqp.exceptions.AccessRefused, amqp.exceptions.NotAllowed) as exc:
            if self.restart_count > 0:
                # Rights that are taken away and given back while it runs are no reason to stay away.
                raise ConnectionError(refusal_of(self.conninfo, exc)) from exc
            raise _shutdown(refusal_of(self.conninfo, exc)) from None
        self._look_for_stranded()
        return connection

    def _watch_gates(self) -> None:
        """Have the queues of this worker that are behind a breaker or a limit looked after."""
        queues = self.app.amqp.queues
        reliable = [task for task in self.app.tasks.values() if isinstance(task, ReliableTask)]
        gates = gates_of(self.app, reliable)
        mine = {queue: gate for queue, gate in gates.items() if queue in queues.consume_from}
        homes = {task.name: task.queue or str(self.app.conf.task_default_queue) for task in reliable}
        behind = {name: queue for name, queue in homes.items() if queue in gates}
        self._runtime.traffic.watch(mine, behind)
        throttle = self._runtime.throttle
        if not mine or throttle is None:
            return
        # What is limited is never consumed from: its messages are fetched as there are permits.
        queues.deselect([queue for queue, gate in mine.items() if gate.limit is not None])
        keeper = Gatekeeper(self, mine, self._runtime.traffic, throttle, self._runtime.settings.lease)
        keeper.start()

    def connection_for_read(self, heartbeat: float | None = None) -> Any:
        """Connect, without end, and so that no message's headers can end the worker."""
        connection = self.app.connection_for_read(heartbeat=heartbeat)
        options = {**(connection.transport_options or {}), "frame_handler": tolerant_frame_handler}
        connection.transport_options = options
        # Kombu's own intervals grow by 2 s to 30 s, the same for all workers of a broker that comes back.
        start, step = random.uniform(0.2, 0.5), random.uniform(0.1, 0.3)  # noqa: S311
        connection.ensure_connection = partial(
            connection.ensure_connection,
            interval_start=start,
            interval_step=step,
            interval_max=RECONNECT_EVERY.total_seconds(),
        )
        connected = self.ensure_connected(connection)
        read_ahead(connected.connection.transport)
        connected.transport.on_readable = read_all
        return connected

    def _look_for_stranded(self) -> None:
        """Look every few seconds for what the pool has lost. Celery ends the timers of a lost connection."""
        if self._looking is not None:
            self._looking.cancel()
        if hasattr(getattr(self.pool, "_pool", None), "_cache"):
            self._looking = self.timer.call_repeatedly(CHECK_EVERY.total_seconds(), self._give_back_stranded)

    def _give_back_stranded(self) -> None:
        pool = self.pool._pool
        jobs = list(pool._cache.values())
        for job in self._watch.stranded(jobs, self._has_begun, pool.outbound_buffer):
            request = getattr(job._callback, "__self__", None)
            if isinstance(request, ReliableRequest):
                job.discard()
                process = job._write_to or job._scheduled_for
                number = getattr(process, "inqW_fd", None)
                if pool._fileno_to_inq.get(number) is process and not unread(process):
                    # It has nothing, and would never be given another; with the job still in its pipe it has,
                    # if it ever reads on. The number may be another process's by now.
                    pool._busy_workers.discard(number)
                request.give_back("the pool has lost it: no process will run it")
                self.controller._quick_release()

    def _has_begun(self, job: Any) -> bool:
        if self._stand_ins:
            return self._stand_ins[0].has_begun(job)
        return job._worker_pid in self.pool._pool._poolctrl

    def on_ready(self) -> None:
        """Take over the signals of a soft stop, which Celery has set by now, and remember what is revoked.

        Deliveries come once this has returned, and whatever is revoked from here on is broadcast to us.
        """
        self._stop.install()
        if self.hub is not None:
            self._read_from = self.connection.connection
            self.hub.on_tick.add(self._before_waiting)
        if self.restart_count <= 0:
            patience = self._runtime.settings.settle_patience
            state.revoked.update(while_store_is_down(lambda: recorded(self._runtime.ledger), patience))
        else:
            # What was revoked while we were away; the loop does not wait for the store.
            self._runtime.in_background(self._catch_up)
        super().on_ready()

    def register_with_event_loop(self, hub: Any) -> None:
        """Stand in for parts of the pool, which has just registered with the loop; deliveries come later."""
        super().register_with_event_loop(hub)
        pool = getattr(self.pool, "_pool", None)
        if Handover.applies_to(pool):
            if self._stand_ins is None:
                self._stand_ins = Handover(pool, hub, self._begun), Outcomes(pool, hub)
                self._process_safely()
            for stand_in in self._stand_ins:
                stand_in.install()

    def _process_safely(self) -> None:
        """Have what the pool cannot take dead-lettered, and its place in the pool given back.

        Celery may call this when another task has ended, from where an error would end the worker.
        """
        process = self.controller._process_task

        def processed(request: Any) -> None:
            try:
                process(request)
            except (*self.connection_errors, *self.channel_errors):
                raise
            except Exception as exc:
                logger.exception("a delivery could not be given to the pool")
                self.controller._quick_release()
                state.task_ready(request)
                # Settled with its letter, and by nobody else.
                request.acknowledged = True
                self._dead_letter(request._message, "malformed", f"{type(exc).__name__}: {exc}")

        self.controller._process_task = processed

    def _before_waiting(self) -> None:
        """Handle the deliveries that nothing would bring to the loop's attention, before it waits.

        They are for the pool to write to its processes, and its turn before the wait may have been already.
        """
        if read_left(self._read_from):
            for act in self.hub.on_tick - {self._before_waiting}:
                act()

    def _catch_up(self) -> None:
        self.call_soon(state.revoked.update, recorded(self._runtime.ledger))

    def on_close(self) -> None:
        """Give back what waits when the worker stops; after a lost connection the broker has done so."""
        if self.connection:
            self.give_back_waiting()
            self.loop_is_over = True
        super().on_close()
        for job in drop_taken_back(getattr(self.pool, "_pool", None)):
            request = getattr(job._callback, "__self__", None)
            if isinstance(request, ReliableRequest):
                request.forget()
                if self.connection:
                    give_back([request], self.connection_errors)

    def give_back_waiting(self) -> None:
        """Consume no more, and return what no process has accepted to the broker, uncharged and at once."""
        if self.task_consumer:
            ignore_errors(self, self.task_consumer.cancel)
        count = give_back(waiting(), self.connection_errors)
        if count:
            logger.info("%s deliveries that were never started are with the broker again", count)
        # Forgets them, and what the pool has not begun to write to its processes.
        super().on_close()

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Reconnect, as Celery does; and say so when a delivery was held for too long."""
        ours = [each for each in tuple(state.reserved_requests) if isinstance(each, ReliableRequest)]
        held = [request for request in ours if not request.acknowledged]
        for sentence in overdue(exc, held, self._runtime.topology.queues):
            logger.error("consumer timeout: %s", sentence)
        super().on_connection_error_after_connected(exc)

    def shutdown(self) -> None:
        """Close the connection when what is being settled in the background has been."""
        self._runtime.wait_until_idle(SETTLING)
        super().shutdown()
        self._stop.leave_threads_behind()

    def call_soon_ack(self, act: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Settle on the worker's loop, or at once where that has ended: a frame is written under a lock."""
        if not self.loop_is_over:
            return super().call_soon_ack(act, *args, **kwargs)
        return act(*args, **kwargs)

    def update_strategies(self) -> None:
        """Build Celery's strategies and tracers, and settle around the tracers."""
        super().update_strategies()
        self._wrap_tracers()

    def _wrap_tracers(self, **_signal: Any) -> None:
        for task in self.app.tasks.values():
            if isinstance(task, ReliableTask):
                task.__trace__ = wrap(task, self._runtime, task.__trace__)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Return Celery's handler behind a check of the envelope, and with an end to every error."""
        handle = super().create_task_handler(*args, **kwargs)
        receive_raw(self.task_consumer.channel, UNPACKED * self._runtime.settings.payload_limit)
        fatal = (*self.connection_errors, *self.channel_errors)
        is_copied = isinstance(self.pool, PreforkPool)

        def on_task_received(message: Any) -> Any:
            message.on_the_loop = self.call_soon_ack
            message.is_copied = is_copied
            message.queue = self._queue_of(message)
            if UNREADABLE in message.headers:
                return self._dead_letter(message, "undecodable", str(message.headers[UNREADABLE]))
            problem = problem_of_headers(message.headers)
            if problem is not None:
                return self._dead_letter(message, "malformed", problem)
            flaw = self._flaw_of(message)
            if flaw is not None:
                return self._dead_letter(message, flaw.reason, flaw.text)
            if any(message.headers.get("timelimit") or ()) and ignored_by(self.pool):
                logger.warning("%s: this pool ignores its time limit", message.headers["task"])
            if h.is_newer(message.headers):
                return self._park(message, "newer-version", "written by a newer release of unlost")
            home = self._runtime.traffic.gate_of(message.headers["task"])
            if home is not None and home != self._queue_of(message):
                return self._move(message, home)
            if self._runtime.traffic.defers(message.headers["task"], message):
                return None
            try:
                return handle(message)
            except fatal:
                raise
            except Exception as exc:
                logger.exception("a delivery could not be handled")
                return self._dead_letter(message, "malformed", f"{type(exc).__name__}: {exc}")

        return on_task_received

    def _flaw_of(self, message: Any) -> Flaw | None:
        """Return why a delivery is not believed; one that is may be signed anew, as ours."""
        seal = self._runtime.seal
        if seal is None or "signatures" in self._runtime.settings.dangerously_without:
            message.is_believed = True
            return None
        flaw = seal.flaw_of(message.headers, message.properties, _bytes_of(raw_body_of(message)))
        message.is_believed = flaw is None
        # Of what the ledger may know, it has the word: see the body's own check.
        if flaw is None and not self._asks_ledger(message) and seal.is_expired(message.headers, _now()):
            return Flaw(EXPIRED_SIGNATURE, seal.describe_age())
        return flaw

    def _asks_ledger(self, message: Any) -> bool:
        """Whether a delivery is run here, by a task of ours."""
        task = self.app.tasks.get(message.headers["task"])
        return isinstance(task, ReliableTask) and not h.is_newer(message.headers)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Dead-letter what cannot be decoded. Celery acks it away."""
        self._dead_letter(message, "undecodable", str(exc))

    def on_unknown_message(self, _body: Any, message: Any) -> None:
        """Dead-letter what is no task message."""
        self._dead_letter(message, "malformed", "no task message")

    def on_unknown_task(self, _body: Any, message: Any, _exc: Exception) -> None:
        """Park a task that this worker does not know: a newer one that does may be starting."""
        self._park(message, "unknown-task", f"{message.headers.get('task')} is not registered here")

    def on_invalid_task(self, _body: Any, message: Any, exc: Exception) -> None:
        """Dead-letter a task message that contradicts itself or whose content type is not accepted."""
        self._dead_letter(message, "malformed", str(exc))

    def _park(self, message: Any, reason: str, text: str) -> None:
        """Send the raw message round the delay path; when its patience is over, dead-letter it."""
        wait = next_park(h.parks_of(message.headers), self._runtime.settings.park)
        if wait is None:
            self._dead_letter(message, reason, text)
            return
        queue = self._queue_of(message)
        logger.warning("a delivery on %s is parked for %s: %s", queue, wait, text)
        due = datetime.now(UTC) + wait
        headers = h.parked(message.headers, queue, due)
        exchange, routing_key = route(self._runtime.topology, queue, due)
        self._runtime.in_background(
            self._publish_then_settle, message, raw_copy(message, exchange, routing_key, headers)
        )

    def _move(self, message: Any, queue: str) -> None:
        """Send a message to the queue where its task's breaker or limit holds."""
        logger.info("a delivery on %s is sent to %s, its task's own queue", self._queue_of(message), queue)
        headers = {**h.strip(message.headers), h.QUEUE: queue}
        copy = raw_copy(message, *route(self._runtime.topology, queue, None), headers)
        self._runtime.in_background(self._publish_then_settle, message, copy)

    def _dead_letter(self, message: Any, reason: str, text: str) -> None:
        """Publish the raw message with its reason off the main loop, then ack it on the loop.

        Of what is not believed nobody is told: its errbacks would be published, and signed, by us, and it
        may bear the id of another task.
        """
        queue = self._queue_of(message)
        logger.error("a delivery on %s is dead-lettered as %s: %s", queue, reason, text)
        letter = letter_of_raw(self._runtime, message, queue, reason, text)
        if self._is_believed(message):
            tell = partial(tell_failed, self.app, message, reason, text)
            self._runtime.in_background(self._publish_then_settle, message, letter, tell)
        else:
            evidence = replace(letter, headers={**letter.headers, **h.seals(message.headers)})
            self._runtime.in_background(self._publish_then_settle, message, evidence)

    def _is_believed(self, message: Any) -> bool:
        return self._runtime.seal is None or getattr(message, "is_believed", False)

    def _publish_then_settle(
        self, message: Any, copy: Outgoing, then: Callable[[], None] = lambda: None
    ) -> None:
        """Ack when the copy is confirmed; otherwise the delivery goes back and is tried again."""
        try:
            self._publish(copy, message)
        except Exception:
            # Whatever it was: left unsettled, the delivery would be held for as long as the connection lasts.
            logger.exception("a letter or parked copy could not be published: its delivery is given back")
            self.call_soon_ack(message.reject_log_error, logger, self.connection_errors, True)
            return
        try:
            then()
        finally:
            # The copy is confirmed: whatever else goes wrong, nobody else shall send another.
            self.call_soon_ack(message.ack_log_error, logger, self.connection_errors)

    def _publish(self, copy: Outgoing, message: Any) -> None:
        try:
            self._runtime.publisher.publish(self._signed(copy, message))
        except InvalidMessage as exc:
            logger.warning("a delivery's copy goes without the headers that cannot be sent: %s", exc)
            light = replace(copy, headers=h.lightened(copy.headers))
            self._runtime.publisher.publish(self._signed(light, message))

    def _signed(self, copy: Outgoing, message: Any) -> Outgoing:
        """Sign a delivery's copy if the delivery is believed; as old as that, for it is only passed on.

        What cannot be signed is a letter without: given back, it would come again without end.
        """
        if not self._is_believed(message):
            return copy
        try:
            return self._runtime.signed(copy, signed_at_of(message.headers))
        except (LookupError, ValueError) as exc:
            logger.exception("the copy of a delivery on %s cannot be signed", message.queue)
            if copy.exchange == naming.dead_letter_exchange_of(self._runtime.topology.name):
                return copy
            return letter_of_raw(self._runtime, message, message.queue, UNSIGNABLE, str(exc))

    def _queue_of(self, message: Any) -> str:
        """Return the queue a delivery came from; its routing key may be the delay path's."""
        info = message.delivery_info or {}
        if FETCHED_FROM in info:
            return str(info[FETCHED_FROM])
        tag = info.get("consumer_tag")
        tags = getattr(self.task_consumer, "_active_tags", {})
        for name, active in tags.items():
            if active == tag:
                return str(name)
        return str(self.app.conf.task_default_queue)


def letter_of_raw(runtime: Runtime, message: Any, queue: str, reason: str, text: str) -> Outgoing:
    """Return the letter of a delivery that is no task: its body and properties as they came."""
    headers = message.headers if isinstance(message.headers, dict) else {}
    failure = Failure(reason=reason, exception=text, failed_at_ms=epoch_ms(datetime.now(UTC)))
    origin = origin_of(message.delivery_info, runtime.settings.code_version)
    letter = {**h.letter(headers, h.generation_of(headers), failure, origin), h.QUEUE: queue}
    return raw_copy(message, naming.dead_letter_exchange_of(runtime.topology.name), queue, letter)


def raw_copy(message: Any, exchange: str, routing_key: str, headers: Mapping[str, Any]) -> Outgoing:
    """Return a delivery's message as it came, undecoded, with other headers and another destination."""
    kept = {
        name: value for name, value in (message.properties or {}).items() if name not in NOT_OURS_TO_REPEAT
    }
    return Outgoing(
        exchange=exchange,
        routing_key=routing_key,
        body=raw_body_of(message),
        headers=headers,
        properties={**kept, "delivery_mode": 2},
    )


def _bytes_of(body: bytes | str) -> bytes:
    return body if isinstance(body, bytes) else body.encode(errors="surrogatepass")


def _now() -> datetime:
    return datetime.now(UTC)


def _shutdown(text: str) -> WorkerShutdown:
    logger.critical("%s", text)
    return WorkerShutdown(EXIT_CONFIGURATION)
