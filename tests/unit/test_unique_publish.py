"""The order of lease, publish, hand-over and cancel; real publishes are in the integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

import unlost
from unlost.core.ids import MessageId
from unlost.errors import PublishError
from unlost.idempotency.memory import MemoryStore
from unlost.tasks.runtime import Runtime, runtime_of
from unlost.tasks.unique import publish_unique
from unlost.topology.model import Topology, WorkQueue


@pytest.fixture
def task() -> Iterator[Any]:
    """A unique task that replaces, on a store in memory; nothing is sent."""
    app = Celery("shop", broker="amqp://guest@localhost:1//", set_as_current=False)
    unlost.install(app, topology=Topology(name="shop", queues={"shop.work": WorkQueue()}), store="memory://")

    @app.task(
        base=unlost.ReliableTask,
        name="shop.pack",
        unique="until_finished",
        on_conflict="replace",
        shared=False,
    )
    def pack(number: int) -> None:
        pass

    yield app.tasks["shop.pack"]
    app.close()


def publish(task: Any, sent: list[str], fail: bool = False) -> None:
    """Publish a message that is noted instead of sent."""

    def note(given: dict[str, Any]) -> None:
        if fail:
            raise PublishError("no")
        sent.append(given["task_id"])

    publish_unique(task, runtime_of(task.app), ((5,), {}), (), {}, note)


def state(runtime: Runtime, task_id: str) -> str | None:
    """Return where a message stands."""
    row = runtime.ledger.read(MessageId("shop.pack", task_id))
    return row.state if row else None


def test_all_that_is_replaced_is_cancelled(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another publisher that comes between two looks is replaced too, and so is what both found there."""
    sent: list[str] = []
    publish(task, sent)
    release, once = MemoryStore.release, iter([True])

    def release_and_be_overtaken(store: MemoryStore, holder: str) -> bool:
        released = release(store, holder)
        if next(once, False):
            publish(task, sent)
        return released

    monkeypatch.setattr(MemoryStore, "release", release_and_be_overtaken)
    publish(task, sent)

    runtime = runtime_of(task.app)
    assert [state(runtime, task_id) for task_id in sent] == ["cancelled", "cancelled", None]


def test_nothing_is_cancelled_for_a_message_that_is_not_there(task: Any) -> None:
    """The old message goes on when its successor could not be published, and nobody is held up."""
    sent: list[str] = []
    publish(task, sent)
    with pytest.raises(PublishError):
        publish(task, sent, fail=True)
    assert state(runtime_of(task.app), sent[0]) is None

    publish(task, sent)
    assert len(sent) == 2
