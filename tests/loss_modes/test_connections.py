"""Loss modes of the connection between worker and broker."""

from __future__ import annotations

import socket
import threading
from contextlib import nullcontext
from datetime import timedelta

import pytest

from tests.support.lossmodes.app import WORK
from tests.support.lossmodes.scenario import Scenario, Stage
from tests.support.lossmodes.side import CONFIRMING, LATE, ONE, QUORUM, Side
from tests.support.lossmodes.verdict import Ending, Outcome
from unlost.testing.brokers.alarms import memory_alarm

pytestmark = [pytest.mark.one_broker, pytest.mark.long]


def test_the_connection_is_lost_while_a_task_runs(stage: Stage) -> None:
    """The redelivered copy runs beside the first on plain Celery; the lease holds it off on unlost."""

    def act(side: Side) -> None:
        side.start()
        side.send("t.waits", "long")
        side.wait_for_run("long")
        side.cut()
        if side.plain:
            side.wait_for_run("long", 2)
        side.note("release")

    stage.prove(
        Scenario(
            mode="redelivered-while-running",
            sentence="The connection breaks while a task runs: the broker delivers it again at once, and the "
            "copy runs beside the first.",
            plain=LATE,
            does=Outcome.REPEATED,
            act=act,
            ends={"long": Ending.EFFECT},
            settings={"UNLOST_LEASE": "3"},
        )
    )


def test_the_worker_dies_between_effect_and_ack(stage: Stage) -> None:
    """A task that has committed but is not acked is run again by plain Celery; unlost knows it is done."""

    def act(side: Side) -> None:
        worker = side.start(ONE)
        side.send("t.commits_then", "finished", "kill-parent")
        side.see_dead(worker)
        side.start(ONE)
        side.work_off()

    stage.prove(
        Scenario(
            mode="done-but-unacked",
            sentence="A task has committed its effect and its worker dies before the ack: it is delivered "
            "and executed again.",
            plain=LATE,
            does=Outcome.REPEATED,
            act=act,
            ends={"finished": Ending.EFFECT},
            settings={"UNLOST_LEASE": "3"},
        )
    )


def test_the_control_queue_is_still_taken(stage: Stage) -> None:
    """A worker whose control queue belongs to its own dead connection ends; with unlost it has another."""

    def act(side: Side) -> None:
        # To the broker the connection of before a network failure is alive until its heartbeats are missed.
        with side.channel() as channel:
            channel.queue_declare(f"w0@{socket.gethostname()}.celery.pidbox", exclusive=True)
            side.start(ONE, wait=False)
            side.wait_for(lambda: side.has_died or " ready." in side.logs(), "it is refused, or at work")
            side.send("t.effect", "after")

    stage.prove(
        Scenario(
            mode="control-queue-locked",
            sentence="After a network failure the worker's exclusive control queue still belongs to its old "
            "connection: the broker answers 405, and the worker ends instead of trying again.",
            plain=LATE,
            does=Outcome.DIED,
            act=act,
            ends={"after": Ending.EFFECT},
        )
    )


def test_the_broker_is_away_for_long(stage: Stage) -> None:
    """Plain Celery gives up after a number of attempts to connect; unlost never does."""

    def act(side: Side) -> None:
        side.start(ONE)
        side.refuse()
        side.wait_for(lambda: side.has_died or side.logs().count("Trying again") >= 3, "it has tried")
        side.admit()
        side.send("t.effect", "after")

    stage.prove(
        Scenario(
            mode="gives-up",
            sentence="A worker that has tried `broker_connection_max_retries` times (100: some 46 minutes) "
            "to reach the broker ends.",
            plain=LATE.and_("that number at 2", conf={"broker_connection_max_retries": 2}),
            does=Outcome.DIED,
            act=act,
            ends={"after": Ending.EFFECT},
        )
    )


def test_the_connection_breaks_again_and_again(stage: Stage) -> None:
    """After each of three breaks the worker consumes again, on both sides."""

    def act(side: Side) -> None:
        side.start(ONE)
        for number in range(3):
            side.cut()
            side.send("t.effect", f"after-{number}")
            # So that no ack of it is still on its way at the next break.
            side.work_off()

    stage.prove(
        Scenario(
            mode="deaf-after-reconnect",
            sentence="A worker reconnects and does not consume: seen in earlier releases of Celery.",
            plain=LATE,
            does=Outcome.FINE,
            act=act,
            ends={f"after-{number}": Ending.EFFECT for number in range(3)},
        )
    )


def test_a_body_keeps_the_worker_from_its_heartbeats(stage: Stage) -> None:
    """A worker that sends no heartbeats is taken for dead, and what it runs is delivered again."""

    def act(side: Side) -> None:
        side.start("--pool=solo")
        side.send("t.waits", "long")
        side.wait_for_run("long")
        side.wait_for(lambda: not side.consumers(WORK), "the broker has given the worker up")
        side.note("release")

    stage.prove(
        Scenario(
            mode="heartbeats-starved",
            sentence="Something blocks the worker's main loop (a solo pool's body, a slow call in the "
            "parent): the broker misses heartbeats, ends the connection and delivers the running task again.",
            plain=LATE.and_("the solo pool"),
            does=Outcome.REPEATED,
            act=act,
            ends={"long": Ending.EFFECT},
            conf={"broker_heartbeat": 2},
            # A solo pool cannot keep its time limit, and a worker that knows such a task is refused.
            settings={"TEST_WITHOUT_TASKS": "t.too_slow"},
        )
    )


def test_a_task_runs_past_the_consumer_timeout(stage: Stage) -> None:
    """The broker takes a delivery back that is held too long; plain Celery then runs it twice."""

    def act(side: Side) -> None:
        side.start()
        side.send("t.waits", "long")
        side.wait_for_run("long")
        began = side.logs().count("Connected to amqp")
        side.wait_for(
            lambda: side.has_died or side.logs().count("Connected to amqp") > began,
            "the broker has taken it back",
            timedelta(minutes=3),
        )
        if side.plain and not side.has_died:
            side.wait_for_run("long", 2)
        side.note("release")

    stage.prove(
        Scenario(
            mode="consumer-timeout",
            sentence="A task runs for longer than the broker's consumer timeout (30 minutes by default): the "
            "broker cancels the consumer, the worker reconnects, and the task is run beside itself; before "
            "RabbitMQ 4.3 the worker ends.",
            plain=QUORUM.and_("that timeout at 5 s", arguments={"x-consumer-timeout": 5000}),
            does=Outcome.REPEATED,
            act=act,
            ends={"long": Ending.EFFECT},
            work_queue={"consumer_timeout": 5},
            settings={"UNLOST_LEASE": "3"},
        )
    )


def test_a_memory_alarm_freezes_the_worker(own_stage: Stage) -> None:
    """With confirms on its events a plain worker stands still in an alarm; unlost confirms tasks only."""
    together = threading.Barrier(2, timeout=180)

    def act(side: Side) -> None:
        side.start("-E")
        side.send("t.waits", "long")
        side.wait_for_run("long")
        together.wait()
        # The alarm is the whole broker's: one side raises it for both.
        with memory_alarm(own_stage.broker) if side.plain else nullcontext():
            together.wait()
            if side.plain:
                side.wait_for(lambda: not side.consumers(WORK), "the broker has given the worker up")
            together.wait()
        if side.plain:
            side.wait_for_run("long", 2)
        side.note("release")

    own_stage.prove(
        Scenario(
            mode="alarm-freezes-worker",
            sentence="`confirm_publish` holds for the worker's events too: in a memory or disk alarm its "
            "main loop waits for a confirm without end, heartbeats stop, and what runs is delivered again.",
            plain=LATE.and_("`confirm_publish`, events", conf=CONFIRMING.conf),
            does=Outcome.REPEATED,
            act=act,
            ends={"long": Ending.EFFECT},
            conf={"broker_heartbeat": 2},
        )
    )
