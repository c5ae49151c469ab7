"""Which messages a build could not handle, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from pydantic import BaseModel, SecretStr

import unlost
from tests.support.apps import WORK, close, shop
from unlost.tasks.fitness import misfit


class Card(BaseModel):
    """A payload with a secret."""

    number: SecretStr
    amount: int


@pytest.fixture
def app() -> Iterator[Celery]:
    """An app with a plain task and one with a payload."""
    app = Celery("shop", broker="amqp://nobody@127.0.0.1:1//", set_as_current=False)
    unlost.install(app, topology=shop(), store="memory://")

    @app.task(shared=False, base=unlost.ReliableTask, name="shop.ship", queue=WORK)
    def ship(order: int, *, fast: bool = False) -> None:
        """Take an order."""

    @app.task(shared=False, base=unlost.ReliableTask, name="shop.charge", queue=WORK, payload=Card)
    def charge(card: Card) -> None:
        """Take a payload."""

    yield app
    close(app)


def judged(app: Celery, task: str, payload: Any, **headers: Any) -> tuple[str, str] | None:
    """Return what is said of a JSON message."""
    return misfit(app, {"task": task, "id": "m", **headers}, {"content_type": "application/json"}, payload)


@pytest.mark.parametrize(
    ("task", "payload"),
    [
        ("shop.ship", [[7], {}, {}]),
        ("shop.ship", [[], {"order": 7, "fast": True}, None]),
        ("shop.charge", [[], {"number": "4111", "amount": 1}, {}]),
        ("shop.charge", [[{"number": "4111", "amount": 1}], {}, {}]),
    ],
)
def test_what_fits_is_nothing_to_tell(app: Celery, task: str, payload: Any) -> None:
    """Arguments by position, by name, and as a model's fields."""
    assert judged(app, task, payload) is None


@pytest.mark.parametrize(
    ("task", "payload", "headers", "reason", "text"),
    [
        ("shop.gone", [[], {}, {}], {}, "unknown-task", "shop.gone"),
        ("shop.ship", [[7], {}, {}], {"x-unlost-v": 99}, "newer-version", "newer release"),
        ("shop.ship", [[7], {}, {}], {"timelimit": ["a", None]}, "malformed", "timelimit"),
        ("shop.ship", [[7], {}], {}, "malformed", "[args, kwargs, embed]"),
        ("shop.ship", None, {}, "undecodable", "no JSON"),
        ("shop.ship", [[7, 8], {}, {}], {}, "invalid-payload", "too many positional arguments"),
        ("shop.ship", [[], {"slow": True}, {}], {}, "invalid-payload", "order"),
        ("shop.charge", [[], {"number": "4111", "amount": "much"}, {}], {}, "invalid-payload", "amount: "),
    ],
)
def test_what_does_not_fit_is_named(
    app: Celery, task: str, payload: Any, headers: dict[str, Any], reason: str, text: str
) -> None:
    """The reason that the letter would have, and what is wrong, without the values."""
    found = judged(app, task, payload, **headers)
    assert found is not None
    assert found[0] == reason
    assert text in found[1]
    assert "4111" not in found[1]
    assert "much" not in found[1]


def test_a_payload_in_a_claim_store_is_not_fetched(app: Celery) -> None:
    """Only its task is looked at."""
    assert judged(app, "shop.charge", {"claim": "elsewhere"}, **{"x-unlost-claim": 1}) is None
