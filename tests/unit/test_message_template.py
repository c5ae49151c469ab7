"""A template's messages are those that ``apply_async`` makes, bit for bit where nothing must differ."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import amqp
import pytest
import structlog
from celery import Celery, signals
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.exceptions import EncodeError
from kombu.serialization import registry
from pydantic import BaseModel

import unlost
from tests.support.apps import OTHER, WORK, close, shop
from tests.support.signing import SEAL, signing
from unlost.broker.frames import Frames
from unlost.core import headers as h
from unlost.core.message import Outgoing
from unlost.errors import InvalidMessage
from unlost.tasks.bulk import Renderer
from unlost.tasks.runtime import runtime_of
from unlost.tasks.sink import captured
from unlost.tasks.template import can_fill_in

NOWHERE = "amqp://guest:guest@127.0.0.1:1//"


class Order(BaseModel):
    """A payload."""

    number: int
    note: str = ""


class Pack(unlost.ReliableTask):
    """A task with a payload."""

    name = "shop.pack"
    queue = WORK
    payload = Order

    def run(self, order: Order) -> None:
        """Never run."""


class Count(unlost.ReliableTask):
    """A task with arguments of its own."""

    name = "shop.count"
    queue = WORK
    priority = 3

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Never run."""


class Signed(Count):
    """The same for another app: a class of tasks belongs to one."""

    name = "shop.signed"


@contextmanager
def installed(**options: Any) -> Iterator[Celery]:
    """Make an app whose broker is never reached."""
    with TemporaryDirectory() as folder:
        app = Celery("shop", broker=NOWHERE, set_as_current=False)
        unlost.install(app, topology=shop(), store=f"sqlite:///{Path(folder) / 'l.sqlite'}", **options)
        try:
            yield app
        finally:
            close(app)


@pytest.fixture(scope="module")
def app() -> Iterator[Celery]:
    """Make an installed app for all tests of this module."""
    with installed() as made:
        made.register_task(Pack())
        made.register_task(Count())
        yield made


@pytest.fixture(scope="module")
def signing_app() -> Iterator[Celery]:
    """The same with keys."""
    with installed(signing=signing()) as made:
        made.register_task(Signed())
        yield made


def decoded(message: Outgoing) -> dict[str, Any]:
    """Return what a consumer would see of a message, from the bytes that go over the wire."""
    head, body = Frames(SimpleNamespace(frame_max=131_072), 1).of(message)
    method_size = int.from_bytes(head[3:7], "big") + 8
    seen = amqp.Message()
    seen.inbound_header(head[method_size + 7 : -1])
    return {
        "method": head[:method_size],
        "properties": {
            name: value for name, value in seen.properties.items() if name != "application_headers"
        },
        "headers": dict(seen.properties["application_headers"]),
        "body": body,
        "order of headers": list(seen.properties["application_headers"]),
    }


def comparable(message: Outgoing, *, new_correlation: bool) -> dict[str, Any]:
    """Replace what must differ from message to message, after seeing that it has the right form."""
    seen = decoded(message)
    task_id = seen["headers"]["id"]
    assert len(task_id) == 36
    assert seen["properties"].pop("message_id") == f"{task_id}.0.1"
    assert seen["properties"].pop("correlation_id") == task_id
    assert seen["headers"].pop("id") == task_id
    assert seen["headers"].pop("root_id") == task_id
    assert seen["headers"].pop(h.FIRST_PUBLISHED) > 1_600_000_000_000
    if new_correlation:
        assert len(seen["headers"].pop(h.CORRELATION_ID)) == 32
    return seen


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True)
ITEMS = st.lists(JSON, max_size=4).map(tuple) | st.dictionaries(NAMES, JSON, max_size=4)
HEADER_VALUES = st.text(max_size=20) | st.integers(-(2**63), 2**63 - 1) | st.booleans()
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "queue": st.sampled_from([WORK, OTHER]),
        "priority": st.integers(0, 9),
        "headers": st.dictionaries(
            NAMES.filter(lambda name: name not in ("id", "task")), HEADER_VALUES, max_size=3
        ),
        "shadow": st.text(min_size=1, max_size=20),
        "time_limit": st.integers(100, 200),
        "soft_time_limit": st.integers(1, 99),
    },
)


@settings(deadline=None, max_examples=150)
@given(
    items=st.lists(ITEMS, min_size=2, max_size=4),
    options=OPTIONS,
    correlation=st.none() | st.text("ab", min_size=1),
)
def test_a_filled_in_message_is_the_one_apply_async_makes(
    app: Celery, items: list[Any], options: dict[str, Any], correlation: str | None
) -> None:
    """Whatever the arguments and options, both ways put the same on the wire, but for ids and times."""
    task: Any = app.tasks["shop.count"]
    bound = {"correlation_id": correlation} if correlation else {}
    with structlog.contextvars.bound_contextvars(**bound):
        assert can_fill_in(app, task, unlost.ReliableTask, options)
        fill = Renderer(runtime_of(app), task, options, fills_in=True)
        ask = Renderer(runtime_of(app), task, options, fills_in=False)
        for item in items:
            (filled,), (asked,) = fill(item), ask(item)
            assert filled.headers == {**asked.headers, **{k: filled.headers[k] for k in _differing(filled)}}
            assert comparable(filled, new_correlation=not correlation) == comparable(
                asked, new_correlation=not correlation
            )
    assert fill._template is not None
    assert ask._template is None


@given(items=st.lists(ITEMS, min_size=2, max_size=4), options=OPTIONS, correlation=st.none() | st.text("ab%"))
def test_a_filled_in_message_bears_a_good_signature(
    signing_app: Celery, items: list[Any], options: dict[str, Any], correlation: str | None
) -> None:
    """What goes over the wire verifies, whatever is in it; with another body or header it does not."""
    bound = {"correlation_id": correlation} if correlation else {}
    with structlog.contextvars.bound_contextvars(**bound):
        fill = Renderer(runtime_of(signing_app), signing_app.tasks["shop.signed"], options, fills_in=True)
        made = [fill(item)[0] for item in items]
    assert fill._template is not None
    assert made[-1].encoded
    for message in made:
        seen = decoded(message)
        headers, properties, body = seen["headers"], seen["properties"], seen["body"][7:-1]
        assert headers == message.headers
        assert SEAL.flaw_of(headers, properties, body) is None
        assert SEAL.flaw_of(headers, properties, body + b" ") is not None
        assert SEAL.flaw_of({**headers, "id": "another"}, properties, body) is not None
        assert SEAL.flaw_of({**headers, h.SIGNED_AT: headers[h.SIGNED_AT] + 1}, properties, body) is not None


def _differing(message: Outgoing) -> list[str]:
    return ["id", "root_id", h.FIRST_PUBLISHED, h.CORRELATION_ID]


@settings(deadline=None, max_examples=30)
@given(
    orders=st.lists(st.builds(Order, number=st.integers(), note=st.text(max_size=20)), min_size=2, max_size=4)
)
def test_a_payload_is_the_same_on_both_ways(app: Celery, orders: list[Order]) -> None:
    """A payload model, and the mapping of its fields, make the same message as ``delay`` does."""
    task: Any = app.tasks["shop.pack"]
    fill = Renderer(runtime_of(app), task, {}, fills_in=True)
    for order in orders:
        for item in (order, order.model_dump(), (order,)):
            (filled,) = fill(item)
            with captured(runtime_of(app).sink) as sink:
                task.delay(order)
            assert comparable(filled, new_correlation=True) == comparable(
                sink.messages[0], new_correlation=True
            )


def test_ids_are_never_used_twice(app: Celery) -> None:
    """Each message has a task id and a correlation of its own, on the wire, too."""
    fill = Renderer(runtime_of(app), app.tasks["shop.count"], {}, fills_in=True)
    headers = [decoded(fill((n,))[0])["headers"] for n in range(50)]
    assert len({each["id"] for each in headers}) == 50
    assert len({each[h.CORRELATION_ID] for each in headers}) == 50


def test_a_changed_copy_is_encoded_anew(app: Celery) -> None:
    """What was encoded belongs to that very message: a copy with other headers does not carry it."""
    from dataclasses import replace

    fill = Renderer(runtime_of(app), app.tasks["shop.count"], {}, fills_in=True)
    fill((1,))
    (message,) = fill((2,))
    assert message.encoded
    changed = replace(message, headers={**message.headers, "tenant": "acme"})
    assert decoded(changed)["headers"]["tenant"] == "acme"
    assert json.loads(message.body)[0] == [2]


def test_another_json_encoder_is_the_applications_choice(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where something has registered its own JSON with kombu, that makes the body of every message."""
    ours = registry._encoders["json"]
    own = ours._replace(encoder=lambda value: json.dumps(value, indent=1))
    monkeypatch.setitem(registry._encoders, "json", own)
    fill = Renderer(runtime_of(app), app.tasks["shop.count"], {}, fills_in=True)
    bodies = [fill((n,))[0].body for n in range(3)]
    assert fill._template is not None
    assert [str(body).splitlines()[2].strip() for body in bodies] == ["0", "1", "2"]


@pytest.mark.parametrize("number", [0, 1])
def test_what_json_cannot_hold_is_named(app: Celery, number: int) -> None:
    """First or filled in, an argument that JSON has no form for is refused with the task's name."""
    fill = Renderer(runtime_of(app), app.tasks["shop.count"], {}, fills_in=True)
    for n in range(number):
        fill((n,))
    with pytest.raises(EncodeError, match=r"shop\.count: JSON has no form") as caught:
        fill((object(),))
    assert isinstance(caught.value, InvalidMessage)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), EncodeError)  # noqa: S301


class Other(Count):
    """The same once more: registering a task class binds it to that app."""

    name = "shop.other_count"


class Routed(Count):
    """A task that publishes in a way of its own."""

    name = "shop.routed"

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        """Add something to each message."""
        return super().apply_async(*args, **kwargs)


class Named(Count):
    """A task whose messages are named after their arguments."""

    name = "shop.named"

    def shadow_name(self, args: Any, kwargs: Any, options: Any) -> str:  # noqa: ARG002
        """Return a name."""
        return f"count {args}"


@pytest.mark.parametrize("kind", [Routed, Named])
def test_a_task_with_a_way_of_its_own_is_asked_each_time(kind: type[Count]) -> None:
    """A task that overrides ``apply_async`` or ``shadow_name`` gets no template."""
    with installed() as app:
        task = app.register_task(kind())
        assert not can_fill_in(app, task, unlost.ReliableTask, {})


@pytest.mark.parametrize(
    "options",
    [{"countdown": 5}, {"expires": 60}, {"link": []}, {"compression": "zlib"}, {"tenant": "acme"}],
    ids=str,
)
def test_options_that_differ_by_message_are_left_to_apply_async(app: Celery, options: dict[str, Any]) -> None:
    """What must be computed for each message, or is not known, gets no template."""
    assert not can_fill_in(app, app.tasks["shop.count"], unlost.ReliableTask, options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task_routes", {"shop.*": {"priority": 1}}),
        ("task_compression", "zlib"),
        ("task_send_sent_event", True),
    ],
)
def test_settings_that_differ_by_message_are_left_to_apply_async(name: str, value: Any) -> None:
    """Routes, compression and events of the application are honoured, so there is no template."""
    with installed() as app:
        task = app.register_task(Other())
        assert can_fill_in(app, task, unlost.ReliableTask, {})
        app.conf[name] = value
        assert not can_fill_in(app, task, unlost.ReliableTask, {})


@pytest.mark.parametrize("signal", ["before_task_publish", "after_task_publish"])
def test_a_listener_hears_of_each_message(app: Celery, signal: str) -> None:
    """With a receiver of Celery's publish signals each message goes the whole way, past it."""
    heard: list[str] = []

    def listen(headers: dict[str, Any], **_: Any) -> None:
        heard.append(headers["id"])

    getattr(signals, signal).connect(listen)
    try:
        task: Any = app.tasks["shop.count"]
        assert not can_fill_in(app, task, unlost.ReliableTask, {})
        render = Renderer(runtime_of(app), task, {}, fills_in=False)
        sent = [render((n,))[0].headers["id"] for n in range(3)]
    finally:
        getattr(signals, signal).disconnect(listen)
    assert heard == sent


def test_a_tracing_library_in_between_is_not_bypassed(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something has wrapped Celery's ``apply_async``, it sees every message."""
    from functools import wraps

    from celery import Task

    original = Task.apply_async

    @wraps(original)
    def traced(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    assert can_fill_in(app, app.tasks["shop.count"], unlost.ReliableTask, {})
    monkeypatch.setattr(Task, "apply_async", traced)
    assert not can_fill_in(app, app.tasks["shop.count"], unlost.ReliableTask, {})
