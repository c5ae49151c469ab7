"""The thread of a worker that opens and closes the queues behind gates."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, TypeVar

import amqp
from celery.worker import state

from unlost.core.breaker import Breaker, Circuit
from unlost.core.limits import Limit
from unlost.core.ports import Throttle
from unlost.errors import StoreUnavailable
from unlost.tasks.gates import FETCHED_FROM, PROBE, Gate, Traffic
from unlost.tasks.leases import RENEWALS_PER_LEASE

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two looks at the shared state, and at a limited queue.
TURN = 0.25

#: Each look at a limited queue costs round trips, so not more often than this, seconds.
SHORTEST_TURN = 0.005

#: Seconds that the main loop may take to act; it may be connecting anew.
LOOP_PATIENCE = 30.0


class Gatekeeper:
    """Has a worker consume, or not, from queues behind gates.

    Args:
        consumer: The worker's.
        gates: By queue, of those that this worker consumes from.
        traffic: What the requests report.
        store: The shared state.
        lease: How long other workers believe what this one says that it runs.
    """

    def __init__(
        self,
        consumer: Any,
        gates: Mapping[str, Gate],
        traffic: Traffic,
        store: Throttle,
        lease: timedelta,
    ) -> None:
        self._tap = Tap(consumer)
        self._gates = gates
        self._traffic = traffic
        self._store = store
        self._lease = lease
        self._closed = {queue for queue, gate in gates.items() if gate.limit is not None}
        self._probes: dict[str, float] = {}
        self._told: dict[str, tuple[int, float]] = {}
        self.worker = f"{socket.gethostname()}:{os.getpid()}"

    def start(self) -> None:
        """Begin, on a thread of its own that ends with the process."""
        threading.Thread(target=self._keep, name="unlost-gates", daemon=True).start()

    def _keep(self) -> None:
        wait = 0.0
        while not is_stopping():
            self._traffic.changed.wait(max(wait, SHORTEST_TURN))
            self._traffic.changed.clear()
            wait = min(self._safely(gate) for gate in self._gates.values())

    def _safely(self, gate: Gate) -> float:
        try:
            return self._turn(gate)
        except StoreUnavailable as exc:
            logger.warning("queue %s stays as it is: %s", gate.queue, exc)
        except Exception:
            # A keeper that ends would leave its queues as they are for ever.
            logger.exception("the gate of queue %s could not be looked after, trying again", gate.queue)
        return TURN

    def _turn(self, gate: Gate) -> float:
        """Do what there is to do, and return the seconds until there may be more."""
        if gate.breaker is not None:
            circuit = self._report(gate.queue, gate.breaker)
            self._traffic.see(gate.queue, circuit)
            if not circuit.flows:
                self._close(gate.queue, circuit)
            # Only now: what is given back must not come to this worker again.
            if deferred := self._traffic.take_deferred(gate.queue):
                self._tap.go_on(deferred, flows=circuit.flows)
            if not circuit.flows:
                self._probe(gate.queue, gate.breaker, circuit)
                return TURN
        if gate.limit is not None:
            return self._pull(gate.queue, gate.limit)
        self._open(gate.queue)
        return TURN

    def _report(self, queue: str, breaker: Breaker) -> Circuit:
        """Tell the store how attempts ended, and return what it says."""
        tally = self._traffic.take_tally(queue)
        if not tally.ok and not tally.failed:
            return self._store.circuit(breaker.name)
        try:
            return self._store.count(breaker, ok=tally.ok, failed=tally.failed)
        except Exception:
            self._traffic.put_back(queue, tally)
            raise

    def _close(self, queue: str, circuit: Circuit) -> None:
        if queue not in self._closed:
            logger.warning("queue %s pauses: %s; its messages stay in the broker", queue, circuit.reason)
            self._tap.cancel(queue)
            self._closed.add(queue)

    def _open(self, queue: str) -> None:
        if queue in self._closed:
            self._tap.consume(queue)
            self._closed.discard(queue)
            logger.warning("queue %s flows again", queue)

    def _probe(self, queue: str, breaker: Breaker, circuit: Circuit) -> None:
        """Try one message, or see what became of the one that is being tried."""
        deadline = self._probes.get(queue)
        if deadline is not None:
            self._see(queue, breaker, circuit, deadline)
        elif self._store.probe(breaker, self.worker):
            logger.warning("queue %s probes breaker %s with one message", queue, breaker.name)
            self._traffic.begin_probe(queue)
            self._tap.fetch(queue, 1, probe=True)
            if self._traffic.has_probe(queue):
                self._probes[queue] = time.monotonic() + breaker.probe_patience.total_seconds()
            else:
                self._store.probed(breaker, self.worker, ok=None)

    def _see(self, queue: str, breaker: Breaker, circuit: Circuit, deadline: float) -> None:
        answers = self._traffic.answers(queue)
        if answers:
            self._store.probed(breaker, self.worker, ok=answers[0])
        elif circuit.prober == self.worker and time.monotonic() < deadline:
            return
        del self._probes[queue]
        self._traffic.changed.set()

    def _pull(self, queue: str, limit: Limit) -> float:
        """Take as many messages as there are permits and hands for."""
        running = self._running_under(limit)
        hands = self._tap.hands()
        waiting = self._tap.depth(queue) if hands > 0 else 0
        wanted = min(hands, waiting)
        if not wanted and (limit.concurrent is None or not self._must_tell(limit, running)):
            return TURN
        grant = self._store.permits(limit, self.worker, wanted=wanted, running=running, lease=self._lease)
        self._told[limit.name] = (running + grant.permits, time.monotonic())
        taken = self._tap.fetch(queue, grant.permits) if grant.permits else 0
        if taken < grant.permits:
            self._store.refund(limit, grant.permits - taken)
        if waiting > grant.permits == wanted:
            # All hands are full; whoever is done sets the event.
            return TURN
        return min(grant.wait or TURN, TURN)

    def _running_under(self, limit: Limit) -> int:
        """Return how many messages this worker runs under a limit, of all queues whose tasks name it."""
        return sum(
            self._traffic.running(gate.queue)
            for gate in self._gates.values()
            if gate.limit is not None and gate.limit.name == limit.name
        )

    def _must_tell(self, limit: Limit, running: int) -> bool:
        """Whether the others must hear how many messages run here: it has changed, or they soon forget."""
        told, at = self._told.get(limit.name, (0, 0.0))
        renewal = self._lease.total_seconds() / RENEWALS_PER_LEASE
        return running != told or (running > 0 and time.monotonic() - at > renewal)


class Tap:
    """Acts on the worker's consumer, from another thread, by its main loop.

    Args:
        consumer: The worker's.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    def cancel(self, queue: str) -> None:
        """Stop consuming from a queue; after a reconnect too."""
        self._on_loop(lambda: self._consumer.cancel_task_queue(queue))

    def consume(self, queue: str) -> None:
        """Consume from a queue again."""
        self._on_loop(lambda: self._consumer.add_task_queue(queue))

    def depth(self, queue: str) -> int:
        """Return how many messages are ready in a queue."""
        return self._on_loop(lambda: int(self._channel().queue_declare(queue, passive=True).message_count))

    def fetch(self, queue: str, most: int, *, probe: bool = False) -> int:
        """Get messages and have them handled as if they had been delivered; return how many there were."""
        return self._on_loop(lambda: self._fetch(queue, most, probe=probe))

    def go_on(self, messages: Sequence[Any], *, flows: bool) -> None:
        """Have messages handled that were kept for a moment, or give them back uncounted."""
        self._on_loop(lambda: self._go_on(messages, flows=flows))

    def _go_on(self, messages: Sequence[Any], *, flows: bool) -> None:
        for message in messages:
            if message.channel is not self._channel():
                # Of a lost connection: the broker has given it back itself.
                continue
            if flows:
                self._consumer.task_consumer.on_message(message)
            else:
                # From RabbitMQ 4.3 on a nack is not counted, as a reject is; py-amqp has no method for it.
                tag = message.delivery_tag
                message.channel.send_method(amqp.spec.Basic.Nack, "Lbb", (tag, False, True))

    def hands(self) -> int:
        """Return how many more messages the worker would prefetch."""
        return int(self._consumer.initial_prefetch_count) - len(state.reserved_requests)

    def _fetch(self, queue: str, most: int, *, probe: bool) -> int:
        for taken in range(most):
            message = self._channel().basic_get(queue)
            if message is None:
                return taken
            message.delivery_info |= {FETCHED_FROM: queue, PROBE: probe}
            self._consumer.task_consumer._receive_callback(message)
        return most

    def _channel(self) -> Any:
        return self._consumer.task_consumer.channel

    def _on_loop(self, act: Callable[[], T]) -> T:
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(act())
            except Exception as exc:
                future.set_exception(exc)
                # A lost connection is for the loop to see; anything else would end it.
                if isinstance(exc, (*self._consumer.connection_errors, *self._consumer.channel_errors)):
                    raise

        self._consumer.call_soon(run)
        return future.result(timeout=LOOP_PATIENCE)


def is_stopping() -> bool:
    """Whether the worker is being stopped (0 is a warm stop, so compare)."""
    return any(flag is not None and flag is not False for flag in (state.should_stop, state.should_terminate))
