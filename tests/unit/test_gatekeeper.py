"""What acts on a worker's main loop never ends it, and a lost connection is still seen there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from unlost.tasks.gatekeeper import Tap


class Gone(ConnectionError):
    """The connection is lost."""


class Consumer:
    """A worker's consumer whose loop runs what it is given at once, and remembers what came out of it."""

    connection_errors = (Gone,)
    channel_errors = ()
    task_consumer = None

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
