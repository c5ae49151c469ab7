"""Loss modes of the publisher."""

from __future__ import annotations

import pytest

from tests.support.lossmodes.app import EXCHANGE, WORK
from tests.support.lossmodes.scenario import Scenario, Stage
from tests.support.lossmodes.side import CONFIRMING, DEFAULTS, LATE, ONE, Side
from tests.support.lossmodes.verdict import Ending, Outcome

pytestmark = pytest.mark.one_broker

#: How long unlost tries again before it raises.
SHORT = {"UNLOST_PUBLISH_PATIENCE": "1"}


def test_the_broker_refuses_and_nobody_hears(stage: Stage) -> None:
    """Without confirms ``delay()`` returns although the full queue refused the message; unlost raises."""

    def act(side: Side) -> None:
        side.limit(WORK)
        side.fill(WORK)
        side.send("t.effect", "refused")

    stage.prove(
        Scenario(
            mode="publish-unconfirmed",
            sentence="Celery publishes without confirms: what the broker refuses, or loses with its "
            "connection, was sent successfully as far as `delay()` knows.",
            plain=DEFAULTS.and_("a queue that refuses when full", arguments={"x-overflow": "reject-publish"}),
            does=Outcome.LOST,
            act=act,
            ends={"refused": Ending.REFUSED},
            settings=SHORT,
        )
    )


def test_no_queue_is_bound(stage: Stage) -> None:
    """With confirms a message that no queue takes is confirmed and dropped; unlost raises."""

    def act(side: Side) -> None:
        side.send("t.effect", "first")
        with side.channel() as channel:
            channel.queue_delete(WORK)
        side.send("t.effect", "unroutable")

    stage.prove(
        Scenario(
            mode="unroutable-confirmed",
            sentence="A queue was deleted or unbound while the publisher was connected: the broker confirms "
            "the message and drops it, as Celery does not publish with `mandatory`.",
            plain=CONFIRMING,
            does=Outcome.LOST,
            act=act,
            ends={"unroutable": Ending.REFUSED},
            settings=SHORT,
        )
    )


def test_an_error_reaches_the_wrong_publish(stage: Stage) -> None:
    """A publish to a missing exchange returns, and the next one raises; under unlost the guilty one does."""

    def act(side: Side) -> None:
        side.send("t.effect", "to-nowhere", exchange="t.gone", routing_key="anything")
        side.send("t.effect", "next")

    stage.prove(
        Scenario(
            mode="error-blames-the-next",
            sentence="A publish that the broker answers with a channel error (no such exchange, too large) "
            "returns; the error is raised by the next publish, which is innocent.",
            plain=DEFAULTS,
            does=Outcome.LOST,
            act=act,
            ends={"to-nowhere": Ending.REFUSED},
            settings=SHORT,
        )
    )


@pytest.mark.long
def test_a_queue_is_mistyped(stage: Stage) -> None:
    """A queue name that nobody declared becomes a queue that nobody consumes; unlost refuses it."""

    def act(side: Side) -> None:
        side.send("t.effect", "mistyped", queue="t.wrok")
        side.start(ONE)
        side.work_off()

    stage.prove(
        Scenario(
            mode="queue-mistyped",
            sentence="A mistyped queue name is declared as a new queue, and the task waits there for ever.",
            plain=DEFAULTS,
            does=Outcome.STUCK,
            act=act,
            ends={"mistyped": Ending.REFUSED},
        )
    )


@pytest.mark.long
def test_the_queue_is_declared_otherwise(stage: Stage) -> None:
    """A queue with another argument than the worker's ends a plain worker; unlost's never declare."""

    def act(side: Side) -> None:
        arguments = {"x-queue-type": "quorum", "x-max-length": 100_000}
        with side.channel() as channel:
            channel.queue_delete(WORK)
            channel.queue_declare(WORK, durable=True, auto_delete=False, arguments=arguments)
            channel.queue_bind(WORK, EXCHANGE, WORK)
        side.send_raw("t.effect", "after", id="after")
        side.start(ONE, wait=False)

    stage.prove(
        Scenario(
            mode="declared-otherwise",
            sentence="Somebody declared the queue with another argument: the worker's own declaration is "
            "answered with 406, and the worker ends.",
            plain=LATE,
            does=Outcome.DIED,
            act=act,
            ends={"after": Ending.EFFECT},
        )
    )
