"""Queues that do not always flow: a circuit breaker pauses them, a limit has them taken one permit at a time.

A gate belongs to a queue, because what can be paused at the broker is a consumer. Its thread asks the store
(never the worker's main loop), and has the loop act: cancel the queue's consumer, consume again, or get so
many messages as there are permits. Whatever is not taken stays in the broker.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from celery import Celery

from unlost.core.breaker import Breaker, Circuit
from unlost.core.limits import Limit
from unlost.errors import ConfigurationError

#: Attribute on the ExceptionInfo: what the body raised speaks against what it depends on.
SPEAKS_AGAINST = "unlost_speaks_against"

#: In the delivery info of a message that was fetched: the queue it was fetched from.
FETCHED_FROM = "unlost-fetched-from"
#: In the delivery info of a message that was fetched to probe a breaker.
PROBE = "unlost-probe"


@dataclass(frozen=True, slots=True)
class Gate:
    """What holds a queue back."""

    queue: str
    breaker: Breaker | None = None
    limit: Limit | None = None


def gates_of(app: Celery, tasks: Iterable[Any]) -> dict[str, Gate]:
    """Return the gates of an app's queues, by queue.

    Args:
        app: Whose default queue it is.
        tasks: All reliable tasks that are registered.

    Raises:
        ConfigurationError: Tasks of one queue have different breakers or limits: pausing the one would
            stop the other.
    """
    gates: dict[str, tuple[Gate, str]] = {}
    for task in tasks:
        queue = task.queue or str(app.conf.task_default_queue)
        gate = Gate(queue, task.breaker, task.limit)
        known, other = gates.setdefault(queue, (gate, task.name))
        if known != gate:
            raise ConfigurationError(
                f"tasks {other} and {task.name} share queue {queue!r} but not breaker and limit: what pauses "
                "the one would stop the other. Give them the same, or a queue each."
            )
    return {queue: gate for queue, (gate, _) in gates.items() if gate.breaker or gate.limit}


@dataclass
class Tally:
    """Ends of attempts that the store does not know of yet."""

    ok: int = 0
    failed: int = 0


@dataclass(eq=False)
class Passage:
    """What the worker's parent knows of the deliveries of one gate.

    Attributes:
        running: The requests that are with this worker; one that Celery drops, as after a lost connection,
            is nobody's any more and leaves by itself.
        tally: How attempts ended since the store was told.
        has_probe: Whether a message was fetched as a probe.
        answers: How the probe ended: one value, or none yet.
        circuit: What the store said last.
        is_unsure: Whether an attempt has failed of which the store has not been told.
        deferred: Messages that came meanwhile, unacked; never more than are prefetched.
    """

    running: WeakSet[Any] = field(default_factory=WeakSet)
    tally: Tally = field(default_factory=Tally)
    has_probe: bool = False
    answers: list[bool | None] = field(default_factory=list)
    circuit: Circuit | None = None
    is_unsure: bool = False
    deferred: list[Any] = field(default_factory=list)


class Traffic:
    """The deliveries behind gates: requests report them on the main loop, the gatekeeper reads them."""

    def __init__(self) -> None:
        #: Set whenever there may be something to do.
        self.changed = threading.Event()
        self._lock = threading.Lock()
        self._passages: dict[str, Passage] = {}
        self._queues: dict[str, str] = {}

    def watch(self, gates: Collection[str], queues: Mapping[str, str]) -> None:
        """Keep account of gates from now on.

        Args:
            gates: The queues that this worker consumes from.
            queues: The queue of every task that has one behind a gate.
        """
        with self._lock:
            self._passages = {queue: Passage() for queue in gates}
            self._queues = dict(queues)

    def gate_of(self, task: str) -> str | None:
        """Return the queue of a task that has one behind a gate."""
        return self._queues.get(task)

    def begin(self, request: Any, task: str, delivery_info: Mapping[str, Any]) -> None:
        """Note a delivery that this worker has taken."""
        if not self._queues:
            return
        with self._lock:
            passage = self._of(task)
            if passage is not None:
                passage.running.add(request)
                passage.has_probe |= bool(delivery_info.get(PROBE))

    def end(self, request: Any, task: str, delivery_info: Mapping[str, Any], *, ok: bool | None) -> None:
        """Note how a delivery ended: well, by what it depends on, or in a way that tells nothing."""
        if not self._queues:
            return
        with self._lock:
            passage = self._of(task)
            if passage is None or request not in passage.running:
                return
            passage.running.discard(request)
            passage.tally.ok += ok is True
            passage.tally.failed += ok is False
            passage.is_unsure |= ok is False
            if delivery_info.get(PROBE):
                passage.answers.append(ok)
        self.changed.set()

    def defers(self, task: str, message: Any) -> bool:
        """Keep a message for a moment, if its task's circuit is open or a failure may just be opening it."""
        if not self._queues:
            return False
        with self._lock:
            passage = self._of(task)
            if passage is None or message.delivery_info.get(PROBE):
                return False
            if not passage.is_unsure and (passage.circuit is None or passage.circuit.flows):
                return False
            passage.deferred.append(message)
        return True

    def take_deferred(self, queue: str) -> list[Any]:
        """Return the messages that were kept, once the store has been told of every failure."""
        with self._lock:
            passage = self._passages[queue]
            if passage.tally.failed:
                return []
            passage.is_unsure = False
            taken, passage.deferred = passage.deferred, []
        return taken

    def running(self, queue: str) -> int:
        """Return how many deliveries of a gate are with this worker."""
        with self._lock:
            return len(self._passages[queue].running)

    def take_tally(self, queue: str) -> Tally:
        """Return what the store does not know yet, and begin anew."""
        with self._lock:
            passage = self._passages[queue]
            taken, passage.tally = passage.tally, Tally()
        return taken

    def put_back(self, queue: str, tally: Tally) -> None:
        """Keep what the store could not be told."""
        with self._lock:
            kept = self._passages[queue].tally
            kept.ok += tally.ok
            kept.failed += tally.failed

    def see(self, queue: str, circuit: Circuit) -> None:
        """Note what the store says of a queue's breaker."""
        with self._lock:
            self._passages[queue].circuit = circuit

    def circuits(self) -> dict[str, Circuit]:
        """Return what the store said last of each queue that has a breaker."""
        with self._lock:
            found = {queue: passage.circuit for queue, passage in self._passages.items()}
        return {queue: circuit for queue, circuit in found.items() if circuit is not None}

    def begin_probe(self, queue: str) -> None:
        """Forget the probe before."""
        with self._lock:
            passage = self._passages[queue]
            passage.has_probe = False
            passage.answers.clear()

    def has_probe(self, queue: str) -> bool:
        """Whether what was fetched is a delivery that will have an end."""
        with self._lock:
            return self._passages[queue].has_probe

    def answers(self, queue: str) -> list[bool | None]:
        """Return how the probe ended: one value, or none yet."""
        with self._lock:
            return list(self._passages[queue].answers)

    def _of(self, task: str) -> Passage | None:
        return self._passages.get(self._queues.get(task, ""))
