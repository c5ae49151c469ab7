"""Every way in which an app publishes tasks signs them; nothing is sent here, the messages are looked at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, chain, group
from sqlalchemy.orm import Session

import unlost
from tests.support.apps import WORK, close, shop
from tests.support.signing import SEAL, signing
from unlost import outbox
from unlost.claims.check import ClaimCheck
from unlost.claims.stores import open_claims
from unlost.cli.outbox import _ready
from unlost.core import headers as h
from unlost.core.message import Outgoing
from unlost.core.outcome import Outcome
from unlost.core.signing import Seal
from unlost.outbox.relay import Relay, sending
from unlost.outbox.store import OutboxStore
from unlost.outbox.wakeup import Poll
from unlost.tasks.runtime import Runtime, runtime_of

NOWHERE = "amqp://guest:guest@127.0.0.1:1//"


class Kept:
    """A publisher, and its windows, that keep what they are given and call it confirmed."""

    def __init__(self) -> None:
        self.messages: list[Outgoing] = []

    def publish(self, message: Outgoing, **_: Any) -> None:
        """Keep a message."""
        self.messages.append(message)

    def put(self, message: Outgoing) -> None:
        """Keep a message of a window."""
        self.messages.append(message)

    def publish_many(self, messages: Iterable[Outgoing], **_: Any) -> Iterator[Any]:
        """Keep messages."""
        for message in messages:
            self.publish(message)
            yield SimpleNamespace(outcome=Outcome.OK, error=None, outgoing=message)

    def window(self, *_: Any, **__: Any) -> Kept:
        """Return what keeps messages."""
        return self

    def settled(self) -> list[Any]:
        """Return nothing of interest."""
        return []

    settle = close = settled


class Pay(unlost.ReliableTask):
    """A task that only ever is published here."""

    name = "shop.pay"
    queue = WORK

    def run(self, order: int) -> None:
        """Never run."""


def installed(folder: Path, kept: Kept, **options: Any) -> Celery:
    """Make an app that publishes into a list."""
    app = Celery("shop", broker=NOWHERE, set_as_current=False)
    store = f"sqlite:///{folder / 'ledger.sqlite'}"
    runtime = unlost.install(app, topology=shop(), store=store, **options)
    runtime.publisher.close()
    object.__setattr__(runtime, "publisher", kept)
    app.register_task(Pay())
    return app


@pytest.fixture
def kept() -> Kept:
    """What was published."""
    return Kept()


@pytest.fixture
def app(tmp_path: Path, kept: Kept) -> Iterator[Celery]:
    """Make an app that signs."""
    made = installed(tmp_path, kept, signing=signing())
    yield made
    close(made)


def in_a_window(app: Celery, pay: Any) -> None:
    """Publish in a block."""
    with unlost.publishing(app):
        pay.delay(1)


def by_outbox(app: Celery, pay: Any) -> None:
    """Write into the outbox, and relay without a key."""
    relay_outbox(app, pay, None)


def by_outbox_with_keys(app: Celery, pay: Any) -> None:
    """Write into the outbox, and relay with keys and a claim store."""
    check = ClaimCheck(open_claims("memory://signed"), 0, timedelta(days=1))
    relay_outbox(app, pay, _ready(check, SEAL))


def relay_outbox(app: Celery, pay: Any, ready: Callable[[Outgoing], Outgoing] | None) -> None:
    """Publish by way of the outbox."""
    runtime = runtime_of(app)
    with Session(runtime.engine) as session, session.begin():
        outbox.publish(session, pay, order=1)
    store = OutboxStore(runtime.ledger.database)  # type: ignore[attr-defined]
    Relay(store, sending(runtime.publisher, ready=ready), Poll()).drain(threading.Event())


WAYS: dict[str, Callable[[Celery, Any], Any]] = {
    "delay": lambda _, pay: pay.delay(1),
    "apply_async": lambda _, pay: pay.apply_async((1,), headers={"x-tenant": "acme"}, priority=5),
    "countdown": lambda _, pay: pay.apply_async((1,), countdown=5),
    "compressed": lambda _, pay: pay.apply_async((1,), compression="gzip"),
    "send_task": lambda app, _: app.send_task("shop.pay", (1,), queue=WORK),
    "chain": lambda _, pay: chain(pay.si(1), pay.si(2)).apply_async(),
    "group": lambda _, pay: group(pay.si(1), pay.si(2)).apply_async(),
    "link": lambda _, pay: pay.apply_async((1,), link=pay.si(2), link_error=pay.si(3)),
    "template": lambda _, pay: pay.apply_many([(1,), (2,), (3,)]),
    "one by one": lambda _, pay: pay.apply_many([(1,), (2,)], compression="gzip"),
    "window": in_a_window,
    "outbox": by_outbox,
    "outbox with keys": by_outbox_with_keys,
}


def flaws(messages: Iterable[Outgoing], seal: Seal = SEAL) -> list[Any]:
    """Return what is wrong with each message."""
    return [seal.flaw_of(each.headers, each.properties, each.raw_body) for each in messages]


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_every_way_of_publishing_signs(app: Celery, kept: Kept, way: Callable[[Celery, Any], Any]) -> None:
    """Whatever publishes a task, each message bears a good signature."""
    way(app, app.tasks["shop.pay"])
    assert kept.messages
    assert flaws(kept.messages) == [None] * len(kept.messages)


def test_a_large_payload_is_signed_as_the_reference_that_travels(tmp_path: Path, kept: Kept) -> None:
    """The claim, with its checksum, is what the signature covers."""
    claims = {"claim_store": f"file://{tmp_path}/claims", "claim_above": 0}
    app = installed(tmp_path, kept, signing=signing(), settings=claims)
    app.tasks["shop.pay"].delay(1)
    assert kept.messages[0].headers[h.CLAIM] == 1
    assert flaws(kept.messages) == [None]
    close(app)


def test_a_relay_without_keys_leaves_a_signed_payload_whole(tmp_path: Path) -> None:
    """What it checks in would need another signature: the message stays as it was written."""
    check = ClaimCheck(open_claims(f"file://{tmp_path}/claims"), 0, timedelta(days=1))
    message = SEAL.sign(
        Outgoing(exchange="", routing_key="q", body="x" * 50, headers={"id": "a"}), datetime.now(UTC)
    )
    assert _ready(check, None)(message) is message


def test_without_keys_nothing_is_signed(tmp_path: Path, kept: Kept) -> None:
    """An app that is installed without signing publishes what it always did."""
    app = installed(tmp_path, kept)
    app.tasks["shop.pay"].delay(1)
    assert [h.seals(each.headers) for each in kept.messages] == [{}]
    close(app)


def test_the_runtime_shows_no_secret(app: Celery) -> None:
    """Neither runtime nor settings show a key."""
    runtime: Runtime = runtime_of(app)
    assert signing().keys["k1"].get_secret_value() not in repr(runtime) + repr(runtime.settings)
