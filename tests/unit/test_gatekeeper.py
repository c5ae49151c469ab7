"""What acts on a worker's main loop never ends it, and a lost connection is still seen there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import amqp
import pytest

import unlost
from unlost.core.breaker import Circuit
from unlost.tasks.gatekeeper import Gatekeeper, Tap
from unlost.tasks.gates import Gate, Traffic
from unlost.throttle.memory import MemoryThrottle


class Gone(ConnectionError):
    """The connection is lost."""


class Consumer:
    """A worker's consumer whose loop runs what it is given at once, and remembers what came out of it."""

    connection_errors = (Gone,)
    channel_errors = ()
    task_consumer: Any = None

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.raised: list[Exception] = []
        self.cancelled: list[str] = []

    def call_soon(self, act: Callable[[], Any]) -> None:
        """Run it as the loop would."""

        def loop() -> None:
            try:
                act()
            except Exception as exc:  # noqa: BLE001 - the loop sees all
                self.raised.append(exc)

        thread = threading.Thread(target=loop)
        thread.start()
        thread.join()

    def cancel_task_queue(self, queue: str) -> None:
        """Cancel, or fail."""
        if self.error is not None:
            raise self.error
        self.cancelled.append(queue)


def test_what_is_asked_for_is_done_on_the_loop() -> None:
    """And the asker waits for it."""
    consumer = Consumer()
    Tap(consumer).cancel("q")
    assert consumer.cancelled == ["q"]


def test_a_lost_connection_is_for_the_loop_and_for_the_asker() -> None:
    """The loop has to connect again, and the asker has to ask again."""
    consumer = Consumer(Gone("reset"))
    with pytest.raises(Gone):
        Tap(consumer).cancel("q")
    assert [type(each) for each in consumer.raised] == [Gone]


def test_any_other_error_is_the_askers_alone() -> None:
    """kombu's loop would end with it, and the worker with the loop: as while it connects anew."""
    consumer = Consumer()
    with pytest.raises(AttributeError):
        Tap(consumer).depth("q")
    assert consumer.raised == []


class Channel:
    """A channel that remembers what was sent on it."""

    def __init__(self) -> None:
        self.sent: list[tuple[object, ...]] = []

    def send_method(self, *what: object) -> None:
        """Remember."""
        self.sent.append(what)


class Kept:
    """A message that was kept for a moment."""

    delivery_tag = 7

    def __init__(self, channel: Channel) -> None:
        self.channel = channel


class TaskConsumer:
    """What handles deliveries."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.handled: list[Any] = []

    def on_message(self, message: Any) -> None:
        """Handle one."""
        self.handled.append(message)


@pytest.mark.parametrize("flows", [True, False])
def test_kept_messages_are_handled_or_given_back(flows: bool) -> None:
    """A nack gives back and is not counted; what came by a lost connection is the broker's again anyway."""
    consumer, channel = Consumer(), Channel()
    consumer.task_consumer = TaskConsumer(channel)
    message = Kept(channel)
    Tap(consumer).go_on([message, Kept(Channel())], flows=flows)
    assert consumer.task_consumer.handled == ([message] if flows else [])
    nack = (amqp.spec.Basic.Nack, "Lbb", (7, False, True))
    assert channel.sent == ([] if flows else [nack])


class Request:
    """A delivery that this worker has taken."""


class FullQueues:
    """A broker that has five messages in every queue, and a worker with hands for nine."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        self.taken: list[Request] = []

    def hands(self) -> int:
        """Return how many more messages the worker would prefetch."""
        return 9

    def depth(self, _: str) -> int:
        """Return how many messages are ready."""
        return 5

    def fetch(self, queue: str, most: int) -> int:
        """Take messages."""
        for _ in range(most):
            self.taken.append(Request())
            self.traffic.begin(self.taken[-1], queue, {})
        return most


def keeper(store: MemoryThrottle, *gates: Gate) -> Gatekeeper:
    """Return a keeper of gates that are named as their tasks, over full queues."""
    traffic = Traffic()
    traffic.watch([gate.queue for gate in gates], {gate.queue: gate.queue for gate in gates})
    made = Gatekeeper(None, {gate.queue: gate for gate in gates}, traffic, store, timedelta(minutes=1))
    made._tap = FullQueues(traffic)  # type: ignore[assignment]
    return made


def test_queues_that_share_a_limit_share_its_places() -> None:
    """In one worker as between workers, whichever queue is looked after first and however often."""
    limit = unlost.Limit(name="printer", concurrent=3)
    store = MemoryThrottle()
    gates = [Gate("one", None, limit), Gate("two", None, limit)]
    first, second = keeper(store, *gates), keeper(store, *gates)
    second.worker = "another"
    for _ in range(3):
        for gate in gates:
            first._turn(gate)
            second._turn(gate)
    assert len(first._tap.taken) + len(second._tap.taken) == 3  # type: ignore[attr-defined]


def test_counts_that_the_store_could_not_be_told_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raised: the next turn tells it."""
    breaker = unlost.Breaker(name="bank", at_least=1)
    store = MemoryThrottle()
    keeps = keeper(store, Gate("one", breaker, None))
    request = Request()
    keeps._traffic.begin(request, "one", {})
    keeps._traffic.end(request, "one", {}, ok=False)
    with monkeypatch.context() as patched:
        patched.setattr(store, "count", broken)
        with pytest.raises(TypeError):
            keeps._report("one", breaker)
    assert keeps._report("one", breaker).reason == "the last 1 attempts failed"


def broken(*_: Any, **__: Any) -> Circuit:
    """Fail as nobody has foreseen."""
    raise TypeError
