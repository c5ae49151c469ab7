"""Loss modes of messages that a worker cannot run."""

from __future__ import annotations

import pytest

from tests.support.lossmodes.app import DEAD_LETTERS
from tests.support.lossmodes.scenario import Scenario, Stage
from tests.support.lossmodes.side import JSON, LATE, ONE, WITH_LETTERS, Side
from tests.support.lossmodes.verdict import Ending, Outcome
from unlost.topology.naming import dead_letter_exchange_of

pytestmark = pytest.mark.one_broker


@pytest.mark.long
def test_a_malformed_message_is_there_before_the_worker(stage: Stage) -> None:
    """A plain worker that starts on a malformed message holds it or ends; unlost makes it a letter."""

    def act(side: Side) -> None:
        side.send_raw("t.effect", "no-id")
        side.start(ONE)
        side.work_off()

    stage.prove(
        Scenario(
            mode="malformed-held",
            sentence="A worker starts on a message that lacks the header `id`, written by a tool or another "
            "language. If it comes within the worker's first tenth of a second the error is swallowed: the "
            "message is neither acked nor rejected nor logged, and keeps its place in the prefetch window. "
            "If it comes later the worker ends.",
            plain=LATE,
            does=Outcome.STUCK,
            or_else=Outcome.DIED,
            act=act,
            ends={"no-id": Ending.LETTER},
        )
    )


@pytest.mark.long
def test_a_malformed_message_reaches_a_running_worker(stage: Stage) -> None:
    """One message without the header ``id`` ends every plain worker in turn; unlost makes it a letter."""

    def act(side: Side) -> None:
        side.start(ONE)
        side.work_off()
        side.send_raw("t.effect", "no-id")
        side.send_raw("t.effect", "after", id="after")

    stage.prove(
        Scenario(
            mode="malformed-kills-worker",
            sentence="A message that lacks the header `id` reaches a running worker: it raises in the main "
            "loop, the worker ends, the message is requeued, and ends the next worker.",
            plain=LATE,
            does=Outcome.DIED,
            act=act,
            ends={"no-id": Ending.LETTER, "after": Ending.EFFECT},
        )
    )


def test_what_cannot_be_decoded_is_acked(stage: Stage) -> None:
    """Plain Celery acks a body that does not decode, in spite of the dead-letter queue."""

    def act(side: Side) -> None:
        side.start(ONE)
        side.publish_raw(b"{broken", {"task": "t.effect", "id": "1"}, **JSON)
        side.work_off()

    stage.prove(
        Scenario(
            mode="undecodable-acked",
            sentence="A body that does not decode (broken JSON, a bad signature, an expired certificate) is "
            "logged and acked, not dead-lettered.",
            plain=WITH_LETTERS,
            does=Outcome.LOST,
            act=act,
            ends={"{broken": Ending.LETTER},
        )
    )


def test_an_old_worker_gets_a_new_task(stage: Stage) -> None:
    """In a rolling deploy an old plain worker discards a task that it does not know; unlost parks it."""

    def act(side: Side) -> None:
        settings = side.settings
        side.settings = {**settings, "TEST_WITHOUT_TASKS": "t.kept"}
        old = side.start(ONE)
        side.settings = settings
        side.send("t.kept", "new")
        side.work_off()
        side.kill(old)
        side.start(ONE)
        side.work_off()

    stage.prove(
        Scenario(
            mode="unknown-task",
            sentence="In a rolling deploy a worker of the old code gets a task that only the new code has, "
            "and discards it.",
            plain=LATE,
            does=Outcome.LOST,
            act=act,
            ends={"new": Ending.EFFECT},
        )
    )


def test_a_dead_letter_whose_exchange_is_gone(stage: Stage) -> None:
    """The broker drops a dead letter that it cannot route; unlost holds the delivery until it can."""

    def act(side: Side) -> None:
        side.start(ONE)
        with side.channel() as channel:
            channel.exchange_delete(DEAD_LETTERS if side.plain else dead_letter_exchange_of("t"))
        side.send("t.fails", "failing")
        side.wait_for_run("failing")
        if side.plain:
            side.work_off()
        side.declare()

    stage.prove(
        Scenario(
            mode="letter-dropped",
            sentence="The broker dead-letters at most once: while the dead-letter exchange or its binding is "
            "missing, what is rejected is dropped in silence.",
            plain=WITH_LETTERS,
            does=Outcome.LOST,
            act=act,
            ends={"failing": Ending.LETTER},
        )
    )
