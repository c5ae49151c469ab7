"""What the parent hands on: the body decoded where the job is copied, as it came where memory is shared."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

import unlost
from tests.support.apps import WORK, close, shop
from unlost.core import headers as h
from unlost.tasks.request import ReliableRequest

BODY = '[["a"], {}, {}]'


class Note(unlost.ReliableTask):
    """A task that is never run."""

    name = "shop.note_request"
    queue = WORK

    def run(self, what: str) -> None:
        """Never run."""


@pytest.fixture
def app() -> Iterator[Celery]:
    """An installed app with the task."""
    app = Celery("shop", broker="amqp://nobody@127.0.0.1:1//", set_as_current=False)
    unlost.install(app, topology=shop(), store="memory://")
    app.register_task(Note())
    yield app
    close(app)


def received(app: Celery, *, is_copied: bool, **options: Any) -> ReliableRequest:
    """Return the request of a delivery."""
    message: Any = SimpleNamespace(
        headers={"task": Note.name, "id": "m", "lang": "py"},
        body=BODY,
        raw_body=BODY.encode(),
        payload=[["a"], {}, {}],
        content_type="application/json",
        content_encoding="utf-8",
        delivery_info={"routing_key": WORK},
        properties={},
        queue=WORK,
        is_copied=is_copied,
    )
    return ReliableRequest(message, app=app, **options)


def test_a_process_is_given_the_body_decoded(app: Celery) -> None:
    """Pickle has its arguments anyway, as those of the request: they are the same objects."""
    request = received(app, is_copied=True)
    assert (request.body, request.content_type) == ([["a"], {}, {}], None)
    assert request.body[0] is request.request_dict["args"]


def test_what_shares_memory_with_the_parent_decodes_the_body_itself(app: Celery) -> None:
    """A body that changes its arguments does not change what the parent knows of the task."""
    request = received(app, is_copied=False)
    assert (request.body, request.content_type) == (BODY, "application/json")


def test_what_celery_has_decoded_itself_is_left_as_it_is(app: Celery) -> None:
    """A body that is a mapping, of an older protocol, has been made a triple by Celery already."""
    made: Any = (["b"], {}, {})
    request = received(app, is_copied=True, body=made, decoded=True)
    assert request.body == made


@pytest.mark.parametrize("is_copied", [True, False])
def test_a_retry_repeats_the_body_as_it_came(app: Celery, is_copied: bool) -> None:
    """Whatever the process was given to run."""
    assert received(app, is_copied=is_copied).request_dict[h.RAW_BODY] == BODY.encode()
