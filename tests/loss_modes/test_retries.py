"""Loss modes of retries, countdowns and expiry."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import timedelta

import pytest

from tests.support.lossmodes.app import EXCHANGE, HIGH, OTHER, WORK
from tests.support.lossmodes.scenario import Scenario, Stage
from tests.support.lossmodes.side import CONFIRMING, LATE, ONE, QUORUM, TOPOLOGY, Side
from tests.support.lossmodes.verdict import Ending, Outcome
from unlost.errors import HarnessError
from unlost.testing.waiting import wait_until
from unlost.topology.naming import delay_entry_exchange

pytestmark = [pytest.mark.one_broker, pytest.mark.long]

BOTH_QUEUES = (WORK, OTHER)


def test_the_queue_is_full_when_a_task_retries(stage: Stage) -> None:
    """A retry that cannot be published is rejected without requeue by plain Celery; unlost goes on trying."""

    def act(side: Side) -> None:
        side.start(ONE)
        side.send("t.retries_when_told", "retried")
        side.wait_for_run("retried")
        side.limit(WORK)
        side.fill(WORK)
        side.note("go")
        side.wait_for(lambda: side.runs()["filler-0"], "the next message runs")
        side.unlimit(WORK)

    stage.prove(
        Scenario(
            mode="retry-not-published",
            sentence="`retry()` publishes a new message and acks the old one. If the publish fails (a full "
            "queue, an election), the old one is rejected without requeue and dropped.",
            plain=LATE.and_(
                "`confirm_publish`, `worker_prefetch_multiplier=1`",
                conf={**CONFIRMING.conf, "worker_prefetch_multiplier": 1},
                arguments={"x-overflow": "reject-publish"},
            ),
            does=Outcome.LOST,
            act=act,
            ends={"retried": Ending.EFFECT},
            settings={"UNLOST_PUBLISH_PATIENCE": "1"},
            patience=timedelta(seconds=4),
        )
    )


def test_the_documented_route_has_no_queue(stage: Stage) -> None:
    """With the route of Celery's page on quorum queues a retry raises KeyError and is dropped."""

    def act(side: Side) -> None:
        side.start(ONE)
        side.send("t.retries", "routed", 1)
        side.wait_for_run("routed")
        side.work_off()

    stage.prove(
        Scenario(
            mode="retry-of-a-route-without-queue",
            sentence="With a route that names only a routing key, as Celery documents it for quorum queues, "
            "a retry with a countdown raises `KeyError('exchange_type')` inside Celery: the task is dropped.",
            plain=QUORUM.and_("the documented route", conf={"task_routes": {"*": {"routing_key": WORK}}}),
            does=Outcome.LOST,
            act=act,
            ends={"routed": Ending.EFFECT},
            patience=timedelta(seconds=3),
        )
    )


def test_a_delayed_retry_changes_its_queue(stage: Stage) -> None:
    """A retry of a task on a named queue goes to the default queue; under unlost it stays on its own."""

    def act(side: Side) -> None:
        side.start(ONE, "-Q", OTHER)
        side.send("t.retries", "moved", 1, queue=OTHER)
        side.wait_for_run("moved")

    stage.prove(
        Scenario(
            mode="retry-changes-queue",
            sentence="A task that was sent to a queue by name retries with a countdown on quorum queues, and "
            "comes back on the default queue, which other workers serve, or none.",
            plain=QUORUM.and_("", queues=BOTH_QUEUES),
            does=Outcome.STUCK,
            act=act,
            ends={"moved": Ending.EFFECT},
            patience=timedelta(seconds=4),
        )
    )


def test_a_retry_after_less_than_a_second(stage: Stage) -> None:
    """A countdown of half a second is an error to kombu and costs the task; unlost rounds it up."""

    def act(side: Side) -> None:
        side.start(ONE)
        side.send("t.retries", "half", 0.5)
        side.wait_for_run("half")
        side.work_off()

    stage.prove(
        Scenario(
            mode="retry-below-a-second",
            sentence="On quorum queues a retry after less than a second, as backoff with jitter makes them, "
            "raises `ValueError` inside kombu, and the task is dropped.",
            plain=QUORUM,
            does=Outcome.LOST,
            act=act,
            ends={"half": Ending.EFFECT},
            patience=timedelta(seconds=3),
        )
    )


def test_the_delay_path_is_missing(stage: Stage) -> None:
    """Before any worker has declared the delay exchanges a countdown goes nowhere; unlost says so."""

    def act(side: Side) -> None:
        if side.plain is None:
            with side.channel() as channel:
                channel.exchange_delete(delay_entry_exchange(EXCHANGE, TOPOLOGY["delay"]["levels"]))
        side.send("t.effect", "delayed", countdown=1)
        if side.plain:
            side.start(ONE)
        else:
            side.declare()

    stage.prove(
        Scenario(
            mode="delay-path-missing",
            sentence="The exchanges of delayed delivery are declared by workers: a client that publishes "
            "with a countdown before the first of them has started publishes to nowhere.",
            plain=QUORUM.and_("without confirms", conf={"broker_transport_options": {}}),
            does=Outcome.LOST,
            act=act,
            ends={"delayed": Ending.REFUSED},
            settings={"UNLOST_PUBLISH_PATIENCE": "1"},
            patience=timedelta(seconds=3),
        )
    )


def test_a_delayed_task_reaches_two_queues(stage: Stage) -> None:
    """Delayed delivery binds ``#.key``, which matches longer keys too; unlost anchors its keys."""

    def act(side: Side) -> None:
        side.start(ONE, "-Q", f"{WORK},{HIGH}")
        side.send("t.effect", "once", countdown=1, queue=HIGH)
        side.wait_for_run("once")

    stage.prove(
        Scenario(
            mode="delayed-to-two-queues",
            sentence="Delayed delivery binds every queue by the end of its key: a task for `high.t.work` is "
            "delivered to the queue `t.work` as well.",
            plain=QUORUM.and_("", queues=(WORK, HIGH)),
            does=Outcome.REPEATED,
            act=act,
            ends={"once": Ending.EFFECT},
        )
    )


def test_a_task_expires_in_its_queue(stage: Stage) -> None:
    """The broker drops what expires, and its state stays PENDING; unlost makes a letter of it."""

    def act(side: Side) -> None:
        side.send("t.effect", "expiring", expires=1)
        published = time.monotonic()
        wait_until(lambda: time.monotonic() > published + 1.2, timedelta(seconds=5), "it has expired")
        side.start(ONE)
        side.work_off()

    stage.prove(
        Scenario(
            mode="expired-in-queue",
            sentence="`expires` becomes the message's TTL: the broker drops it, no state is recorded, and a "
            "chord waits for it in vain.",
            plain=LATE,
            does=Outcome.LOST,
            act=act,
            ends={"expiring": Ending.LETTER},
        )
    )


def test_a_retry_comes_back_after_its_expiry(stage: Stage) -> None:
    """A retry keeps the moment of expiry and is acked when it comes back too late; unlost makes a letter."""

    def act(side: Side) -> None:
        side.start(ONE)
        side.send("t.retries", "late", 3, expires=2)
        if side.plain:
            # Or nothing is said, when the broker has dropped it.
            with suppress(HarnessError):
                side.wait_for(
                    lambda: "Discarding revoked" in side.logs(), "it is acked", timedelta(seconds=8)
                )

    stage.prove(
        Scenario(
            mode="retry-outlives-expiry",
            sentence="A retry carries the first message's moment of expiry: one that comes back after it is "
            "dropped by the broker or acked by the worker.",
            plain=LATE,
            does=Outcome.LOST,
            act=act,
            ends={"late": Ending.LETTER},
        )
    )


def test_a_retry_inherits_the_delivery_count(stage: Stage) -> None:
    """The new message of a retry says how often its predecessor was returned; under unlost it does not."""

    def act(side: Side) -> None:
        side.send("t.counts", "counted")
        side.give_back(WORK)
        side.start(ONE)
        side.wait_for_run("counted", 2)

    stage.prove(
        Scenario(
            mode="stale-delivery-count",
            sentence="A retry copies the broker's `x-delivery-count` into the new message: whoever tells "
            "poison by it is told of returns that this message never had. The right count is what is lost.",
            plain=QUORUM,
            does=Outcome.LOST,
            act=act,
            ends={"counted at 0": Ending.EFFECT},
        )
    )


def test_a_link_loses_its_correlation(stage: Stage) -> None:
    """Headers of a task do not travel to its links on plain Celery; unlost's correlation id does."""

    def act(side: Side) -> None:
        side.start(ONE)
        name = "correlation" if side.plain else "x-unlost-correlation-id"
        link = side.app.tasks["t.correlates"].si("link")
        side.send("t.effect", "first", link=link, headers={name: "order-7"})
        side.wait_for_run("link")

    stage.prove(
        Scenario(
            mode="correlation-dropped",
            sentence="Headers of a message do not reach the tasks it leads to (links, chains, errbacks): "
            "what belongs together cannot be found together.",
            does=Outcome.LOST,
            act=act,
            ends={"link of order-7": Ending.EFFECT},
        )
    )
