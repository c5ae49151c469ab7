"""What a ReliableTask refuses to be: acked early, settled by somebody else, retried as another message."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Retry
from celery.worker.request import Request

import unlost
from tests.support.apps import WORK, close, shop
from unlost.core.ids import Generation, MessageId
from unlost.core.retry import GiveUp, RetryPolicy
from unlost.core.settlement import Row, Run, State
from unlost.errors import ConfigurationError
from unlost.idempotency.memory import MemoryStore
from unlost.tasks.attempt import Attempt
from unlost.tasks.body import Spent, verdict_of
from unlost.tasks.request import ReliableRequest
from unlost.tasks.runtime import runtime_of

NOWHERE = "amqp://guest:guest@127.0.0.1:1//"


class OwnRequest(Request):
    """A request class of the application's own, which settles as Celery does."""


class Harmless(ReliableRequest):
    """A subclass of ours; what it overrides cannot be known."""


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Celery]:
    """An installed app whose broker is never reached."""
    made = Celery("shop", broker=NOWHERE, set_as_current=False)
    unlost.install(made, topology=shop(), store=f"sqlite:///{tmp_path / 'l.sqlite'}")
    yield made
    close(made)


def register(app: Celery, **options: Any) -> Any:
    """Register a task with these attributes."""

    def run(*_args: Any) -> None:
        """Never run."""

    return app.task(
        run,
        name="shop.task",
        base=unlost.ReliableTask,
        lazy=False,
        shared=False,
        **{"queue": WORK, **options},
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("acks_late", False),
        ("Request", OwnRequest),
        ("Request", "celery.worker.request:Request"),
        ("Request", Harmless),
    ],
)
def test_a_task_that_would_lose_messages_is_refused_when_it_is_registered(
    app: Celery, name: str, value: Any
) -> None:
    """The error names the task, the attribute and its value, and says to remove it."""
    with pytest.raises(ConfigurationError) as caught:
        register(app, **{name: value})
    for words in ("task shop.task", f"{name}={value!r}", "Remove the attribute"):
        assert words in str(caught.value)


def test_a_refused_attribute_is_refused_at_install_too(tmp_path: Path) -> None:
    """A task that was registered before ``install`` is looked at by it."""
    app = Celery("shop", broker=NOWHERE, set_as_current=False)
    register(app, acks_late=False)
    with pytest.raises(ConfigurationError, match=r"task shop\.task: acks_late=False"):
        unlost.install(app, topology=shop(), store=f"sqlite:///{tmp_path / 'l.sqlite'}")


def test_what_says_the_same_as_we_do_is_no_contradiction(app: Celery) -> None:
    """The needed values may be spelled out."""
    task = register(app, acks_late=True, Request="unlost.tasks.request:ReliableRequest")
    assert task.acks_late is True


def test_a_task_that_says_nothing_gets_what_it_needs(app: Celery) -> None:
    """A plain ReliableTask acks late and settles through our request."""
    task = register(app)
    assert (task.acks_late, task.Request) == (True, "unlost.tasks.request:ReliableRequest")
    assert app.tasks["shop.task"] is task


@pytest.fixture
def running(app: Celery) -> Iterator[tuple[Any, Attempt]]:
    """A task of three retries with a generous policy, and an attempt of it that is running."""
    task = register(app, max_retries=3, retry=RetryPolicy())
    attempt = _attempt(1)
    token = runtime_of(app).attempt.set(attempt)
    yield task, attempt
    runtime_of(app).attempt.reset(token)


def _attempt(number: int) -> Attempt:
    row = Row(state=State.LEASED, generation=Generation(0, number), token=1)
    return Attempt(
        message=MessageId("shop.task", "m", 0),
        ledger=MemoryStore(),
        admission=Run(row),
        row=row,
        queue=WORK,
        headers={},
        properties={},
        body=b"[]",
    )


@pytest.mark.parametrize(
    "options",
    [{"args": (1,)}, {"kwargs": {"a": 1}}, {"throw": False}, {"queue": "shop.other"}],
    ids=lambda options: next(iter(options)),
)
def test_a_retry_as_another_message_is_refused(running: tuple[Any, Attempt], options: dict[str, Any]) -> None:
    """``retry`` repeats the same message; what would make it another is a ConfigurationError."""
    task, _ = running
    with pytest.raises(ConfigurationError, match=r"shop\.task.*publish another task instead"):
        task.retry(**options)


def test_a_retry_within_its_budget_only_raises(running: tuple[Any, Attempt]) -> None:
    """``retry`` publishes nothing itself: it raises Celery's ``Retry`` with its delay and cause."""
    task, _ = running
    cause = RuntimeError("why")
    with pytest.raises(Retry) as caught:
        task.retry(countdown=7, exc=cause)
    assert (caught.value.when, caught.value.exc) == (7, cause)


@pytest.mark.parametrize(
    ("given", "budget"), [({"max_retries": 0}, 0), ({"max_retries": 2}, 2), ({}, 3)], ids=str
)
def test_the_budget_is_the_calls_else_the_tasks(
    running: tuple[Any, Attempt], given: dict[str, int], budget: int
) -> None:
    """The last attempt of the budget raises ``Spent`` with the cause; the one before it still retries."""
    task, attempt = running
    cause = RuntimeError("why")
    attempt.row = _attempt(budget + 1).row
    with pytest.raises(Spent) as caught:
        task.retry(exc=cause, **given)
    assert caught.value.exc is cause
    if budget:
        attempt.row = _attempt(budget).row
        with pytest.raises(Retry):
            task.retry(exc=cause, **given)


def test_a_spent_budget_is_not_the_policys_to_decide() -> None:
    """A policy that would try again for ever does not overrule the body's own budget."""
    assert verdict_of(RetryPolicy(), _attempt(1), Spent(RuntimeError("why"))) == GiveUp("budget-spent")
