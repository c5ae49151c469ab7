"""Publishers under faults: what they say of each message, what is there afterwards, and the judgement."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from tests.support.publishing import QUEUE, message
from tests.support.raw_amqp import open_channel
from unlost import errors
from unlost.broker.publisher import Publisher
from unlost.core.message import Outgoing
from unlost.core.outcome import Outcome
from unlost.testing.brokers import Vhost
from unlost.testing.waiting import wait_until

#: Of five threads one publishes message by message; the others keep windows of these sizes.
WINDOWS = (None, 1, 20, 200, 1000)

#: How many messages one call of ``publish_many`` gets.
BATCH = 500


def judge(told: Mapping[str, Outcome], there: Mapping[str, int], given: int) -> list[str]:
    """Return what is wrong with a run; nothing if every message is ok and there, failed and not, or unknown.

    Args:
        told: The outcome of each message, by its id.
        there: How many copies of each were found.
        given: How many messages the publishers had.
    """
    wrong = [
        f"{each}: ok, but absent"
        for each, outcome in told.items()
        if outcome is Outcome.OK and not there.get(each)
    ]
    wrong += [
        f"{each}: failed, but there"
        for each, outcome in told.items()
        if outcome is Outcome.FAILED and there.get(each)
    ]
    wrong += [f"{each}: there, but nobody published it" for each in there if each not in told]
    if len(told) != given:
        wrong.append(f"{given} messages were given, and {len(told)} have an outcome")
    if not any(outcome is Outcome.OK for outcome in told.values()):
        wrong.append("no message is ok: this run shows nothing")
    return wrong


@dataclass
class Load:
    """Threads that publish until they are stopped, and note what they are told."""

    publishing: Publisher
    told: dict[str, Outcome] = field(default_factory=dict)
    given: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, window: int | None, most: int) -> None:
        """Publish in one thread: message by message, or with a window."""
        count = 0
        while count < most and not self.over.is_set():
            batch = [message(body=uuid.uuid4().hex * (1 + count % 7)) for _ in range(BATCH)]
            count += len(batch)
            with self._lock:
                self.given += len(batch)
            if window is None:
                found = {each.message_id: self._one(each) for each in batch}
            else:
                published = self.publishing.publish_many(batch, window=window)
                found = {each.outgoing.message_id: each.outcome for each in published}
            with self._lock:
                self.told.update(found)

    def wait_for(self, outcomes: int) -> None:
        """Wait until so many messages have an outcome."""
        wait_until(lambda: len(self.told) >= outcomes, timedelta(minutes=10), f"{outcomes} have an outcome")

    def _one(self, each: Outgoing) -> Outcome:
        try:
            self.publishing.publish(each)
        except errors.ConfirmUnknown:
            return Outcome.UNKNOWN
        except errors.BrokerError:
            return Outcome.FAILED
        return Outcome.OK

    def counts(self) -> dict[str, int]:
        """Return how many messages have which outcome."""
        with self._lock:
            return {str(outcome): count for outcome, count in Counter(self.told.values()).items()}


@contextmanager
def load(publishing: Publisher, *, each: int) -> Iterator[Load]:
    """Publish from five threads while the block runs, at most ``each`` messages a thread; then stop."""
    running = Load(publishing)
    with ThreadPoolExecutor(len(WINDOWS)) as threads:
        started = [threads.submit(running.run, window, each) for window in WINDOWS]
        try:
            yield running
            for thread in started:
                thread.result()
        finally:
            running.over.set()


class Census:
    """Counts what is in the queue while it is taken out, by message id.

    Args:
        vhost: Where the queue is.
    """

    _LAST = "the last message"

    def __init__(self, vhost: Vhost) -> None:
        self._vhost = vhost
        self.there: Counter[str] = Counter()

    def take_all(self) -> Counter[str]:
        """Take everything out, up to a last message of our own, with many deliveries in flight."""
        with open_channel(self._vhost.amqp_url) as channel:
            last = message(body=self._LAST, priority=0)
            import amqp

            channel.basic_publish_confirm(
                amqp.Message(last.body, message_id=last.message_id, delivery_mode=2, priority=0),
                "",
                QUEUE,
                timeout=30,
            )
            done = threading.Event()

            def on_message(found: amqp.Message) -> None:
                if found.body == self._LAST:
                    done.set()
                else:
                    self.there[str(found.properties["message_id"])] += 1
                channel.basic_ack(found.delivery_tag)

            channel.basic_qos(0, 500, False)
            channel.basic_consume(QUEUE, callback=on_message)
            while not done.is_set():
                channel.connection.drain_events(timeout=60)
        return self.there
