"""``app.amqp``: every publish of a task goes through the confirming publisher and the delay path.

``delay()``, remote ``send_task``, chain links, chord bodies, errbacks and beat all end in the task
sender and the producer pool that this class provides (celery/app/amqp.py). Control traffic (events,
remote control) keeps kombu's own producer: confirms there would block the worker's main loop.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import Any

from celery.app.amqp import AMQP, Queues
from kombu import Producer, pools
from kombu.exceptions import EncodeError
from kombu.resource import Resource
from kombu.utils.functional import ChannelPromise

from unlost.broker.errors import InvalidMessage, NotSerialisable
from unlost.core import headers as h
from unlost.core.clock import epoch_ms, from_epoch_ms, moment_of
from unlost.core.envelope import problem_of_names
from unlost.core.ids import Generation, MessageId, amqp_message_id
from unlost.core.message import Outgoing
from unlost.errors import ConfigurationError
from unlost.observe.context import current_correlation_id
from unlost.tasks.keys import key_headers
from unlost.tasks.payload import guard
from unlost.tasks.runtime import Runtime, runtime_of
from unlost.topology import naming
from unlost.topology.model import Topology

REDACTED = "<redacted>"
PERSISTENT = 2

#: Where a signature keeps others: in its options, and, if it is a group, chain or chord, in its kwargs.
_LINKS = ("link", "link_error", "chord")
_MEMBERS = ("tasks", "header", "body")


class ConfirmingProducer(Producer):
    """A kombu producer whose mandatory publishes are confirmed; rendering is kombu's."""

    def __init__(
        self, *args: Any, runtime: Runtime, ready: Callable[[Outgoing], Outgoing], **kwargs: Any
    ) -> None:
        self._runtime = runtime
        self._ready = ready
        self._unopened: Any = None
        super().__init__(*args, **kwargs)

    @property
    def connection(self) -> Any:
        """Return the connection, or one that is not open: it knows the transport's errors as well."""
        if self.__connection__ is None and self._unopened is not None:
            return self._unopened
        return super().connection

    def connect_when_needed(self, acquire: Callable[[], Any], unopened: Any) -> None:
        """Take a connection by ``acquire`` when a channel is asked for, and not before."""

        def channel() -> Any:
            self.__connection__ = acquire()
            return self.__connection__.default_channel

        self._unopened = unopened
        self._channel = ChannelPromise(channel)

    def disconnect(self) -> None:
        """Give back the connection, if there is one."""
        connection, self.__connection__, self._channel = self.__connection__, None, None
        if connection is not None:
            connection.release()

    def _publish(
        self,
        body: bytes | str,
        priority: int | None,
        content_type: str,
        content_encoding: str,
        headers: dict[str, Any],
        properties: dict[str, Any],
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        exchange: str,
        declare: list[Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        rendered = (body, priority, content_type, content_encoding, headers, properties)
        if not mandatory:
            super()._publish(*rendered, routing_key, mandatory, immediate, exchange, declare, *args, **kwargs)
            return
        message = Outgoing(
            exchange=exchange,
            routing_key=routing_key,
            body=body,
            headers=h.lean(headers),
            properties={
                **properties,
                "priority": priority,
                "content_type": content_type,
                "content_encoding": content_encoding,
            },
        )
        attempt = self._runtime.attempt.get()
        settling = attempt is not None and attempt.completed
        sink = self._runtime.sink.get()
        if sink is not None and sink.takes(settling=settling):
            sink.put(self._ready(message) if sink.publishes else message)
            return
        # A successor of what is done: there is nothing better to do than to go on trying.
        self._runtime.publisher.publish(
            self._ready(message), patience=self._runtime.settings.settle_patience if settling else None
        )


class ProducersWithoutConnection(pools.ProducerPool):
    """kombu's pool, whose producers take a connection when something unconfirmed is sent: an event.

    Tasks are published on the publisher's own connections. kombu takes one from its pool for every publish,
    which is a sixth of what ``delay()`` costs, and waits for it for ever (kombu/pools.py,
    ``_acquire_connection``) once others hold all of them.
    """

    def __init__(self, *args: Any, timeout: float | None, **kwargs: Any) -> None:
        self._timeout = timeout
        super().__init__(*args, **kwargs)

    def create_producer(self) -> ConfirmingProducer:
        """Make a producer that is not connected."""
        made: ConfirmingProducer = self.Producer(None)
        return made

    def prepare(self, p: Any) -> ConfirmingProducer:
        """Return a producer that connects when it must."""
        producer: ConfirmingProducer = p() if callable(p) else p
        producer.connect_when_needed(self._acquire_connection, self.connections.connection)
        return producer

    def release(self, resource: ConfirmingProducer) -> None:
        """Take a producer back, and its connection if it has one."""
        resource.disconnect()
        Resource.release(self, resource)

    def _acquire_connection(self) -> Any:
        return self.connections.acquire(block=True, timeout=self._timeout)


class DeclaredQueues(Queues):
    """The topology's queues; a name that is not among them is an error, never a new queue."""

    def __init__(self, *args: Any, topology: Topology, **kwargs: Any) -> None:
        self._topology = topology
        super().__init__(*args, **kwargs)

    def __missing__(self, name: str) -> Any:
        self._topology.work_queue(name)
        raise KeyError(name)


class ReliableAMQP(AMQP):
    """Celery's AMQP facade with our producer, producer pool, task message and task sender."""

    _producer_pool: Any

    @cached_property
    def _runtime(self) -> Runtime:
        return runtime_of(self.app)

    def queues_cls(self, *args: Any, **kwargs: Any) -> DeclaredQueues:
        """Make the queue mapping; an unknown name raises :class:`unlost.errors.TopologyError`."""
        return DeclaredQueues(*args, topology=self._runtime.topology, **kwargs)

    @property
    def Producer(self) -> Any:  # noqa: N802 - Celery's name
        """Return the producer class that beat and explicit connections use."""
        return partial(ConfirmingProducer, runtime=self._runtime, ready=self.ready)

    def ready(self, message: Outgoing) -> Outgoing:
        """Return a rendered message as it goes to the broker: signed, a large payload in the claim store.

        A task that is known to be a plain one of Celery keeps its payload: its workers could not fetch it.

        Raises:
            InvalidMessage: What would travel is larger than the broker takes; nothing was sent.
            StoreUnavailable: The payload could not be stored; nothing was sent.
        """
        runtime = self._runtime
        if runtime.claims is not None:
            known = self.app.tasks.get(message.headers.get("task"))
            if known is None or getattr(known, "redeems_claims", False):
                message = runtime.claims.check_in(message)
        message = runtime.signed(message)
        guard(message, runtime.settings)
        return message

    @property
    def producer_pool(self) -> Any:
        """Return a pool of confirming producers; a task takes no connection of kombu's."""
        if self._producer_pool is None:
            connections = pools.connections[self.app.connection_for_write()]
            self._producer_pool = ProducersWithoutConnection(
                connections,
                limit=self.app.pool.limit,
                Producer=self.Producer,
                timeout=self.app.conf.broker_pool_acquire_timeout,
            )
        return self._producer_pool

    publisher_pool = producer_pool

    def _retry_publish(self, publish: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Dispatch a link or the next task of a chain, and count it once it is confirmed."""
        attempt = self._runtime.attempt.get()
        if attempt is None:
            return publish(*args, **kwargs)
        attempt.dispatching = True
        try:
            sent = publish(*args, **kwargs)
        finally:
            attempt.dispatching = False
        attempt.dispatched += 1
        return sent

    def as_task_v2(
        self,
        task_id: str,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: datetime | str | None = None,
        *rest: Any,
        **options: Any,
    ) -> Any:
        """Render a task; a delay becomes our own header.

        Celery's ``eta`` header would make a worker hold the message unacked until its own clock says so.
        """
        options.setdefault("argsrepr", REDACTED)
        options.setdefault("kwargsrepr", REDACTED)
        message = super().as_task_v2(task_id, name, args, kwargs, None, None, *rest, **options)
        due = due_in(countdown, eta)
        if due is not None:
            message.headers[h.DUE] = epoch_ms(due)
        args, kwargs, embed = message.body
        if not any(embed.values()):
            return message
        # The caller may hang the same signature on many tasks: each message has one of its own.
        embed = detached(embed)
        freeze(embed)
        return message._replace(body=(args, kwargs, embed))

    def _create_task_sender(self) -> Callable[..., Any]:
        send = super()._create_task_sender()

        def send_reliably(producer: Any, name: str, message: Any, **options: Any) -> Any:
            if self._runtime.outbox.is_taking:
                message = message._replace(sent_event=None)
            # The broker would drop what expires; the worker checks our header and says so.
            options.pop("expiration", None)
            # Ours: equal over all attempts, and stored on disk.
            options.pop("message_id", None)
            options["delivery_mode"] = PERSISTENT
            _refuse_serializer(name, options.get("serializer"))
            _refuse_names(message.headers)
            self._forget_delivery(options)
            if options.get("exchange"):
                _refuse_delay(name, message.headers)
            else:
                queue = _queue_name(options.get("queue")) or self.app.conf.task_default_queue
                self._address(message, queue, options)
            self._complete_headers(message, options)
            options["priority"] = options.get("priority") or 0
            options.update(declare=[], retry=False, mandatory=True)
            try:
                return send(producer, name, message, **options)
            except EncodeError as exc:
                raise NotSerialisable(name, exc) from exc

        return send_reliably

    def _forget_delivery(self, options: dict[str, Any]) -> None:
        """Turn our own exchange and key back into a queue.

        Celery's ``retry`` of a plain task copies both from the delivery, and after a delay they are the
        delay path's.
        """
        exchange = getattr(options.get("exchange"), "name", options.get("exchange")) or ""
        queue = str(options.get("routing_key") or "").rpartition("q:")[2]
        topology = self._runtime.topology
        ours = exchange == topology.exchange or exchange == naming.delay_delivery_exchange(topology.name)
        if queue in topology.queues and (
            ours or not exchange or naming.is_delay_exchange(topology.name, exchange)
        ):
            options.setdefault("queue", queue)
            options.pop("exchange", None)
            options.pop("routing_key", None)

    def _address(self, message: Any, queue: str, options: dict[str, Any]) -> None:
        """Choose the exchange: the application's, or the delay path when it is not due yet."""
        topology = self._runtime.topology
        topology.work_queue(queue)
        message.headers[h.QUEUE] = queue
        options.pop("queue", None)
        exchange, routing_key = route(topology, queue, due_of(message.headers))
        options.update(exchange=exchange, routing_key=routing_key)

    def _complete_headers(self, message: Any, options: dict[str, Any]) -> None:
        headers = {**(options.pop("headers", None) or {})}
        attempt = self._runtime.attempt.get()
        inherited = attempt.correlation_id if attempt else current_correlation_id()
        mine = message.headers
        mine[h.VERSION] = h.CURRENT_VERSION
        mine[h.CORRELATION_ID] = headers.get(h.CORRELATION_ID) or inherited or uuid.uuid4().hex
        if attempt:
            mine[h.CAUSATION_ID] = attempt.message.id
        mine[h.ATTEMPT] = 1
        mine[h.REDRIVES] = 0
        mine[h.FIRST_PUBLISHED] = epoch_ms(datetime.now(UTC))
        mine.update(key_headers(self.app.tasks.get(mine["task"]), *message.body[:2]))
        if expires := mine.pop("expires", None):
            mine[h.EXPIRES] = epoch_ms(moment_of(expires))
        for name, value in h.strip(headers).items():
            if not name.startswith(h.PREFIX):
                mine.setdefault(name, value)
        identity = MessageId(mine["task"], mine["id"], mine.get("replaced_task_nesting") or 0)
        message.properties["message_id"] = amqp_message_id(identity, Generation(0, 1))


def _refuse_serializer(name: str, serializer: str | None) -> None:
    if serializer not in (None, "json"):
        raise ConfigurationError(
            f"{name} is published with serializer={serializer!r}: only JSON is accepted; pass data that "
            "JSON can hold"
        )


def _refuse_names(headers: Any) -> None:
    problem = problem_of_names(headers)
    if problem is not None:
        raise InvalidMessage(f"{headers.get('task')!r} was not sent: {problem}; give another one")


def _refuse_delay(name: str, headers: Any) -> None:
    if h.DUE in headers:
        raise ConfigurationError(
            f"{name} is published to an exchange of its own with a countdown or eta: the delay path ends "
            "at a queue, so give queue=... instead of exchange=..."
        )


def due_of(headers: Any) -> datetime | None:
    """Return when a message may run, or ``None`` for at once."""
    due = headers.get(h.DUE)
    return from_epoch_ms(due) if isinstance(due, int) else None


def route(topology: Topology, queue: str, due: datetime | None) -> tuple[str, str]:
    """Return exchange and routing key for a message of a queue that is due then."""
    wait = due - datetime.now(UTC) if due else timedelta(0)
    if wait <= timedelta(0):
        return topology.exchange, queue
    levels = topology.delay.levels
    entry = naming.delay_entry_exchange(topology.name, levels)
    # Longer than the path is: it comes back early, and goes round once more (see tracer.EARLY).
    return entry, naming.delay_routing_key(min(wait, naming.longest_delay(levels)), queue, levels)


def has_waited(topology: Topology, delivery_info: Any) -> bool:
    """Return whether a delivery has come through the delay path after all of its wait.

    The longest wait that the path has may be the beginning of a longer one.
    """
    info = delivery_info or {}
    exchange = str(info.get("exchange") or "")
    waited = naming.waited_for(str(info.get("routing_key") or ""))
    # Where the last level with a wait handed it on to: a lower level's exchange, or the last.
    if waited is None or not (
        exchange == naming.delay_delivery_exchange(topology.name)
        or naming.is_delay_exchange(topology.name, exchange)
    ):
        return False
    return timedelta(0) < waited < naming.longest_delay(topology.delay.levels)


def due_in(countdown: float | None, eta: datetime | str | None) -> datetime | None:
    """Return when a message with this countdown or eta may run, or ``None`` for at once."""
    if eta:
        return moment_of(eta)
    if countdown is None:
        return None
    if not math.isfinite(countdown):
        raise ValueError(f"countdown={countdown} is no time to wait")
    return datetime.now(UTC) + timedelta(seconds=countdown) if countdown > 0 else None


def _queue_name(queue: Any) -> str | None:
    return queue if queue is None or isinstance(queue, str) else str(queue.name)


def freeze(embed: Any) -> None:
    """Give all signatures inside a message their ids now, so that a repeated dispatch makes no second task.

    Chains are frozen by Celery when they are sent; ``link``, ``link_error``, groups and chords in them are
    not. A chain's own ``task_id`` would rename its last task, so only what is in it is frozen.
    """
    for signature in _signatures(embed):
        if signature.get("subtask_type") not in ("chain", "chord"):
            signature["options"].setdefault("task_id", uuid.uuid4().hex)


def detached(value: Any) -> Any:
    """Return a tree of signatures that shares none of its dictionaries with the caller's."""
    if isinstance(value, list | tuple):
        return [detached(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "task" not in value or not isinstance(value.get("options"), dict):
        return {name: detached(each) for name, each in value.items()}
    options = {**value["options"]}
    options.update({name: detached(options[name]) for name in _LINKS if name in options})
    copied = {**value, "options": options}
    if value.get("subtask_type") is not None:
        kwargs = {**(value.get("kwargs") or {})}
        kwargs.update({name: detached(kwargs[name]) for name in _MEMBERS if name in kwargs})
        copied["kwargs"] = kwargs
    return copied


def _signatures(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every signature in a tree of signatures."""
    if isinstance(value, dict):
        if "task" in value and isinstance(value.get("options"), dict):
            yield value
            value = {"options": _links(value["options"]), "kwargs": _members(value)}
        for inner in value.values():
            yield from _signatures(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _signatures(inner)


def _links(options: dict[str, Any]) -> list[Any]:
    return [options.get(name) for name in _LINKS]


def _members(signature: dict[str, Any]) -> list[Any]:
    """Return the signatures that a group, chain or chord keeps in its kwargs; a task's own are data."""
    if signature.get("subtask_type") is None:
        return []
    kwargs = signature.get("kwargs") or {}
    return [kwargs.get(name) for name in _MEMBERS]
