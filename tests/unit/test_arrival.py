"""A delivery that the ledger cannot admit has an end that is counted, whatever was raised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery, states
from celery.app.task import Context
from celery.app.trace import trace_ok_t
from celery.exceptions import Ignore

import unlost
from tests.support.apps import WORK, close, shop
from unlost.core import headers as h
from unlost.core.ids import MessageId
from unlost.core.message import Outgoing
from unlost.core.parking import next_park
from unlost.core.settlement import State
from unlost.errors import ClaimLost
from unlost.idempotency.holder import make_holder
from unlost.tasks import tracer
from unlost.tasks.body import perform
from unlost.tasks.runtime import Runtime, runtime_of
from unlost.topology import naming

PARK = timedelta(seconds=10)


class Pay(unlost.ReliableTask):
    """A task whose body must not run here."""

    name = "shop.pay_arrival"
    queue = WORK

    def run(self) -> None:
        """Never run."""


class Recorder:
    """A publisher that keeps what it is given."""

    def __init__(self) -> None:
        self.published: list[Outgoing] = []

    def publish(self, message: Outgoing, **_: Any) -> None:
        """Keep a message."""
        self.published.append(message)


@pytest.fixture
def app() -> Iterator[Celery]:
    """An installed app with the task."""
    app = Celery("shop", broker="amqp://nobody@127.0.0.1:1//", set_as_current=False)
    unlost.install(app, topology=shop(), store="memory://", settings={"park": PARK})
    app.register_task(Pay())
    yield app
    close(app)


@pytest.fixture
def task(app: Celery) -> Any:
    """The task as it is registered."""
    return app.tasks[Pay.name]


@pytest.fixture
def runtime(app: Celery) -> Runtime:
    """The app's runtime, which publishes into a list."""
    recorder: Any = Recorder()
    return replace(runtime_of(app), publisher=recorder)


def deliver(runtime: Runtime, task: Any, **headers: Any) -> tuple[Any, list[Outgoing]]:
    """Deliver a message; return what the parent is told, and what was published."""
    given = {"task": task.name, "id": "m", **headers}
    request = {
        **given,
        "properties": {"application_headers": given},
        "delivery_info": {"routing_key": WORK},
        h.HOLDER: make_holder(),
        h.RAW_BODY: b"[[], {}, {}]",
    }

    def trace(*_: Any) -> Any:
        """Run the body as Celery's tracer does."""
        attempt: Any = runtime.attempt.get()
        try:
            returned = perform(task, runtime, attempt, (), {})
        except Exception as exc:  # noqa: BLE001 - as the tracer does
            return tracer._trace_of(exc, states.FAILURE)
        return trace_ok_t(returned, None, 0.0, None)

    recorder: Any = runtime.publisher
    before = len(recorder.published)
    told = tracer.wrap(task, runtime, trace)("m", (), {}, request)
    return told, recorder.published[before:]


def ends_here(told: Any) -> bool:
    """Whether the parent acks: the end is published."""
    return isinstance(told.info.retval, Ignore) and getattr(told.retval, tracer.SETTLED)


@pytest.mark.parametrize("error", [ValueError("'frozen' is no state"), RuntimeError("WRONGTYPE")])
def test_what_cannot_be_admitted_is_parked_and_then_a_letter(
    runtime: Runtime, task: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It waits on the delay path, each time counted; when its patience is over it is a letter."""

    def broken(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(runtime.ledger, "acquire", broken)
    headers: dict[str, Any] = {}
    parks = 0
    while next_park(parks, PARK) is not None:
        told, (copy,) = deliver(runtime, task, **headers)
        parks += 1
        headers = dict(copy.headers)
        assert ends_here(told)
        assert headers[h.PARKS] == parks
        assert h.DUE in headers
        headers = {name: value for name, value in headers.items() if name not in (h.DUE, "task", "id")}
    told, (letter,) = deliver(runtime, task, **headers)
    assert ends_here(told)
    assert letter.exchange == naming.dead_letter_exchange_of(runtime.topology.name)
    assert letter.headers[h.DEATH_REASON] == "not-admitted"
    assert str(error) in letter.headers[h.DEATH_EXCEPTION]


@pytest.mark.parametrize(
    ("error", "reason"), [(RuntimeError("codec"), "permanent"), (ClaimLost("gone"), "payload-lost")]
)
def test_a_payload_that_cannot_be_fetched_ends_by_the_retry_policy(
    runtime: Runtime, task: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    """Whatever fetching it raises is an attempt that failed, recorded and counted in the ledger."""

    def broken(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(tracer, "redeem", broken)
    monkeypatch.setattr(task, "retry_policy", unlost.RetryPolicy(never=(Exception,)))
    told, (letter,) = deliver(runtime, task, **{h.CLAIM: "here"})
    assert getattr(told.retval, tracer.SETTLED)
    assert letter.headers[h.DEATH_REASON] == reason
    row = runtime.ledger.read(MessageId(task.name, "m"))
    assert row is not None
    assert (row.state, row.sent) == (State.DEAD, True)


def test_a_key_that_cannot_be_computed_ends_by_the_retry_policy(
    runtime: Runtime, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A callable that raises is a failed attempt, recorded and counted in the ledger."""

    def broken(_arguments: Any) -> Any:
        raise AttributeError("order")

    monkeypatch.setattr(task, "key", broken)
    monkeypatch.setattr(task, "retry_policy", unlost.RetryPolicy(never=(Exception,)))
    _, (letter,) = deliver(runtime, task)
    assert letter.headers[h.DEATH_REASON] == "permanent"
    assert letter.headers[h.DEATH_EXCEPTION_TYPE] == "builtins.AttributeError"


@pytest.mark.parametrize("custom", [{}, {"tenant": "north", h.KEY: "k"}])
def test_a_task_finds_the_headers_that_celery_would_give_it(
    runtime: Runtime, task: Any, custom: dict[str, Any]
) -> None:
    """``request.headers`` holds what is no part of Celery's protocol, whoever takes it out."""
    given = {"task": task.name, "id": "m", "lang": "py", "timelimit": [None, None], "retries": 0, **custom}
    protocol = {"properties": {"application_headers": given}, "delivery_info": {"routing_key": WORK}}
    ours = {**given, **protocol, h.HOLDER: make_holder(), h.RAW_BODY: b"[[], {}, {}]"}
    seen = []

    def trace(*call: Any) -> Any:
        """Build the request as Celery's tracer does."""
        seen.append(Context(call[3], args=(), called_directly=False, kwargs={}).headers)
        return trace_ok_t(None, None, 0.0, None)

    tracer.wrap(task, runtime, trace)("m", (), {}, ours)
    assert seen[0] == Context({**given, **protocol}, args=(), called_directly=False, kwargs={}).headers


def test_a_body_finds_the_headers_that_did_not_travel(runtime: Runtime, task: Any) -> None:
    """``self.request`` says of a lean message what Celery's publisher had put into it."""
    given = {"task": task.name, "id": "m", "lang": "py"}
    protocol = {"properties": {"application_headers": given}, "delivery_info": {"routing_key": WORK}}
    seen = []

    def trace(*call: Any) -> Any:
        """Build the request as Celery's tracer does."""
        seen.append(Context(call[3]))
        return trace_ok_t(None, None, 0.0, None)

    tracer.wrap(task, runtime, trace)("m", (), {}, {**given, **protocol, **ours()})
    assert {name: getattr(seen[0], name) for name in h.implied()} == h.implied()


def ours() -> dict[str, Any]:
    """Return what the parent puts into a request."""
    return {h.HOLDER: make_holder(), h.RAW_BODY: b"[[], {}, {}]"}
