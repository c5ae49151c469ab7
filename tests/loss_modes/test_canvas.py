"""Loss modes of links, chains and chords."""

from __future__ import annotations

import pytest
from celery import chain, chord

from tests.support.lossmodes.app import OTHER, WORK
from tests.support.lossmodes.scenario import Scenario, Stage
from tests.support.lossmodes.side import CONFIRMING, LATE, ONE, Side
from tests.support.lossmodes.verdict import Ending, Outcome

pytestmark = [pytest.mark.one_broker, pytest.mark.long]


def test_the_queue_of_the_next_link_is_full(stage: Stage) -> None:
    """A link that is refused ends the chain on plain Celery, after its task's success; unlost repeats it."""

    def act(side: Side) -> None:
        side.limit(OTHER)
        side.fill(OTHER)
        side.start(ONE, "-Q", WORK)
        first, second = (side.app.tasks["t.effect"].si(label) for label in ("first", "second"))
        chain(first, second.set(queue=OTHER)).apply_async()
        side.wait_for_run("first")
        if side.plain:
            side.work_off()
        side.unlimit(OTHER)
        side.start(ONE, "-Q", OTHER)

    stage.prove(
        Scenario(
            mode="link-not-published",
            sentence="The next task of a chain cannot be published (its queue is full): the task before it "
            "is recorded as failed, although it succeeded, and acked; the rest of the chain is gone.",
            plain=LATE.and_(
                "`confirm_publish`",
                conf=CONFIRMING.conf,
                queues=(WORK, OTHER),
                arguments={"x-overflow": "reject-publish"},
            ),
            does=Outcome.LOST,
            act=act,
            ends={"first": Ending.EFFECT, "second": Ending.EFFECT},
            settings={"UNLOST_PUBLISH_PATIENCE": "1"},
        )
    )


def test_the_worker_dies_after_the_link_was_sent(stage: Stage) -> None:
    """The redelivered task sends its link once more, under another id; under unlost under the same."""

    def act(side: Side) -> None:
        worker = side.start(ONE)
        link = side.app.tasks["t.receives"].s()
        side.send("t.kills_its_worker_afterwards", "linked", link=link)
        side.see_dead(worker)
        side.start(ONE)
        side.work_off()

    stage.prove(
        Scenario(
            mode="link-twice",
            sentence="A worker dies between sending a task's link and acking the task: the redelivery runs "
            "the body again and sends the link again, under a new id.",
            plain=LATE,
            does=Outcome.REPEATED,
            act=act,
            ends={"linked": Ending.EFFECT, "received linked-done": Ending.EFFECT},
            settings={"UNLOST_LEASE": "3"},
        )
    )


def test_a_chord_waits_for_a_member_that_nobody_can_read(stage: Stage) -> None:
    """A member that never reports leaves its chord waiting for ever; its errback should be called."""

    def act(side: Side) -> None:
        kept = side.app.tasks["t.kept"].si
        body = side.app.tasks["t.gathers"].s()
        body.link_error(side.app.tasks["t.effect"].si("told"))
        chord([kept("member"), kept("torn").set(task_id="torn")], body, app=side.app).apply_async()
        side.tear("torn")
        side.start(ONE)
        side.wait_for_run("member")

    stage.prove(
        Scenario(
            mode="chord-never-told",
            sentence="A member of a chord cannot be decoded: it is acked and never reports, and body and "
            "errback of the chord are never called.",
            plain=LATE,
            does=Outcome.LOST,
            act=act,
            ends={"told": Ending.EFFECT},
            conf={"result_backend": f"file://{stage.results}"},
        )
    )
