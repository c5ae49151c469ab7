"""Who waits for a message that will not succeed is told: its result's readers, its errbacks, its chord."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, states
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult
from kombu.message import Message

import unlost
from tests.support.apps import close, shop
from unlost.tasks.dependents import tell_ended, tell_failed
from unlost.tasks.runtime import runtime_of
from unlost.tasks.sink import captured

HEADERS = {"task": "shop.gone", "id": "m", "group": "g"}


@pytest.fixture
def told() -> list[tuple[str, str]]:
    """What errbacks and chords were told: who, and of which task."""
    return []


@pytest.fixture
def app(told: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """An app whose results are kept in memory, and whose backend notes what chords are told."""
    app = Celery(
        "shop", broker="amqp://nobody@127.0.0.1:1//", backend="cache+memory://", set_as_current=False
    )
    unlost.install(app, topology=shop(), store="memory://")

    @app.task(name="shop.errback", shared=False)
    def errback(request: Any, exc: Any, traceback: Any) -> None:
        """Be told."""
        told.append((f"errback: {exc}", request.id))

    def part(request: Any, state: str, result: Any, **_: Any) -> None:
        told.append((f"chord {(request.chord or {}).get('task')}: {state}", request.id))

    monkeypatch.setattr(app.backend, "on_chord_part_return", part)
    yield app
    close(app)


def message(embed: Any, **headers: Any) -> Message:
    """Return a delivery of a task that nobody knows."""
    return Message(
        body=json.dumps([[], {}, embed]),
        content_type="application/json",
        content_encoding="utf-8",
        headers={**HEADERS, **headers},
    )


def unreadable(headers: dict[str, Any]) -> Message:
    """Return a delivery whose headers can be read and whose body cannot."""
    return Message(body=b"\x00{", content_type="application/json", headers=headers)


PLAIN: dict[str, Any] = {"args": [], "kwargs": {}, "options": {}, "immutable": False}
WAITING = {
    "chord": {"task": "shop.body", **PLAIN},
    "errbacks": [{"task": "shop.errback", **PLAIN}],
}


def test_a_letter_tells_result_errback_and_chord(app: Celery, told: list[tuple[str, str]]) -> None:
    """Each hears of the failure, with the letter's reason."""
    tell_failed(app, message(WAITING), "unknown-task", "not registered")
    result = AsyncResult("m", app=app)
    assert (result.state, str(result.result)) == (states.FAILURE, "unknown-task: not registered")
    assert told == [("chord shop.body: FAILURE", "m"), ("errback: unknown-task: not registered", "m")]


def test_a_body_that_cannot_be_read_still_has_a_result(app: Celery, told: list[tuple[str, str]]) -> None:
    """Who asks for the task id is told; errbacks nobody can know."""
    tell_failed(app, unreadable(HEADERS), "undecodable", "?")
    assert AsyncResult("m", app=app).state == states.FAILURE


def test_a_member_that_cannot_be_read_is_counted_by_its_group(
    app: Celery, told: list[tuple[str, str]]
) -> None:
    """Its headers name its group, so that the member that ends last tells the chord; alone it has none."""
    tell_failed(app, unreadable(HEADERS), "undecodable", "?")
    tell_failed(app, unreadable({**HEADERS, "group": None}), "undecodable", "?")
    assert told == [("chord None: FAILURE", "m")]


def test_a_chord_that_nobody_knows_is_logged(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A member that cannot be read and ends last cannot tell whose it was."""

    def unknown(*_: Any, **__: Any) -> None:
        raise AttributeError("task")

    monkeypatch.setattr(app.backend, "on_chord_part_return", unknown)
    tell_failed(app, unreadable(HEADERS), "undecodable", "?")
    assert "shop.gone[m]: the chord of its group could not be told" in caplog.text


@pytest.mark.parametrize("headers", [None, {}, {"id": "nobody's"}, {"task": 5, "id": "nobody's"}])
def test_nobody_waits_for_what_has_no_id(app: Celery, headers: Any) -> None:
    """What is no task message is nobody's."""
    tell_failed(app, Message(body=b"x", headers=headers), "malformed", "?")
    # The backend in memory is one for all of a process.
    assert AsyncResult("nobody's", app=app).state == states.PENDING


def test_a_revoked_task_tells_its_chord_and_no_errback(app: Celery, told: list[tuple[str, str]]) -> None:
    """As Celery does: the state is REVOKED."""
    tell_ended(app, {**HEADERS, **WAITING, "id": "r"}, TaskRevokedError("revoked"))
    assert AsyncResult("r", app=app).state == states.REVOKED
    assert told == [("chord shop.body: REVOKED", "r")]


def test_a_backend_that_is_down_is_only_logged(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Settlement does not depend on it."""

    def down(*_: Any, **__: Any) -> None:
        raise ConnectionError("the backend is down")

    monkeypatch.setattr(app.backend, "store_result", down)
    tell_failed(app, message(WAITING), "unknown-task", "not registered")
    assert "shop.gone[m]: those who wait for it could not be told" in caplog.text


def test_an_errback_that_is_a_task_is_sent(app: Celery) -> None:
    """One that nobody knows here, or that takes the id alone, is published with the id of what failed."""
    errback = {"task": "shop.elsewhere", "args": [], "kwargs": {}, "options": {}, "immutable": False}
    with captured(runtime_of(app).sink) as kept:
        tell_failed(app, message({"errbacks": [errback]}), "unknown-task", "not registered")
    assert [(each.headers["task"], json.loads(each.body)[0]) for each in kept.messages] == [
        ("shop.elsewhere", ["m"])
    ]


def test_a_header_named_like_an_errback_is_none(app: Celery) -> None:
    """Who waits for a task is said in its body; a header's word would have any task published."""
    with captured(runtime_of(app).sink) as kept:
        tell_failed(app, unreadable({**HEADERS, "errbacks": ["shop.anything"]}), "undecodable", "?")
    assert kept.messages == []
