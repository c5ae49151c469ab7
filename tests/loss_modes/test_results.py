"""Loss modes of the result backend, and of what relies on it."""

from __future__ import annotations

import pytest

from tests.support.lossmodes.scenario import Scenario, Stage
from tests.support.lossmodes.side import LATE, ONE, WITH_LETTERS, Side
from tests.support.lossmodes.verdict import Ending, Outcome

pytestmark = [pytest.mark.one_broker, pytest.mark.long]

#: A backend that fails at every use; tasks use it if they keep their result.
DOWN = {
    "result_backend": "db+sqlite:////nonexistent/results.sqlite",
    "task_ignore_result": True,
    # Else a worker does not even start: it makes the tables first.
    "database_create_tables_at_setup": False,
}


def test_a_success_is_dead_lettered(stage: Stage) -> None:
    """With its backend down plain Celery dead-letters what succeeded; sent back, it happens again."""

    def act(side: Side) -> None:
        side.start(ONE)
        side.send("t.kept", "kept")
        side.wait_for_run("kept")
        side.work_off()
        side.redrive()
        side.work_off()

    stage.prove(
        Scenario(
            mode="success-dead-lettered",
            sentence="The result backend is down: with `task_acks_on_failure=False` a task that succeeded is "
            "dead-lettered, and an operator who sends its letter back repeats it.",
            plain=WITH_LETTERS,
            does=Outcome.REPEATED,
            act=act,
            ends={"kept": Ending.EFFECT},
            conf=DOWN,
        )
    )


def test_a_thread_keeps_its_slot(stage: Stage) -> None:
    """In a thread pool a delivery whose result cannot be stored is never settled; unlost settles it."""

    def act(side: Side) -> None:
        side.start("--pool=threads", ONE)
        side.send("t.kept", "kept")
        side.wait_for_run("kept")
        side.send("t.effect", "next")

    stage.prove(
        Scenario(
            mode="thread-never-settles",
            sentence="The result backend is down, and the pool is one of threads: the delivery is neither "
            "acked nor rejected and keeps its place in the prefetch window until the worker ends.",
            plain=LATE.and_(
                "`worker_prefetch_multiplier=1`, the thread pool", conf={"worker_prefetch_multiplier": 1}
            ),
            does=Outcome.STUCK,
            act=act,
            ends={"kept": Ending.EFFECT, "next": Ending.EFFECT},
            conf=DOWN,
            # Threads cannot keep its time limit, and a worker that knows such a task is refused.
            settings={"TEST_WITHOUT_TASKS": "t.too_slow"},
        )
    )


def test_an_expired_task_keeps_its_place(stage: Stage) -> None:
    """With its backend down a plain worker never settles an expired task; unlost makes a letter of it."""

    def act(side: Side) -> None:
        side.start(ONE)
        side.send_raw("t.kept", "expired", id="expired", expires="2020-01-01T00:00:00+00:00")
        side.send_raw("t.effect", "after", id="after")

    stage.prove(
        Scenario(
            mode="expired-held",
            sentence="The result backend is down when an expired or revoked task arrives: the worker's main "
            "loop waits while its state is tried to be recorded, and then the message is neither acked nor "
            "rejected, and keeps its place in the prefetch window.",
            plain=LATE,
            does=Outcome.STUCK,
            act=act,
            ends={"expired": Ending.LETTER, "after": Ending.EFFECT},
            conf=DOWN,
        )
    )


def test_a_message_is_there_twice(stage: Stage) -> None:
    """A copy that a publisher's retry made is executed again, whatever Celery's de-duplication is set to."""

    def act(side: Side) -> None:
        side.start(ONE)
        for _ in range(2):
            side.send_raw("t.kept", "twice", id="same")
        side.work_off()

    stage.prove(
        Scenario(
            mode="published-twice",
            sentence="A publisher that got no answer publishes again: both copies are executed. Celery's own "
            "de-duplication looks at redelivered messages only, and this one is not.",
            plain=LATE.and_(
                "`worker_deduplicate_successful_tasks`", conf={"worker_deduplicate_successful_tasks": True}
            ),
            does=Outcome.REPEATED,
            act=act,
            ends={"twice": Ending.EFFECT},
            conf={"result_backend": f"file://{stage.results}"},
        )
    )


def test_a_revoke_is_forgotten(stage: Stage) -> None:
    """A revoke lives in the memory of the workers that run; after a restart the task runs all the same."""

    def act(side: Side) -> None:
        worker = side.start(ONE)
        side.send("t.waits", "long")
        side.wait_for_run("long")
        side.send("t.effect", "revoked", task_id="revoked")
        side.app.control.revoke("revoked")
        side.wait_for(lambda: "flagged as revoked" in side.logs(), "the worker knows")
        side.kill(worker)
        side.note("release")
        side.start(ONE)
        side.work_off()

    stage.prove(
        Scenario(
            mode="revoke-forgotten",
            sentence="A revoke is kept in the memory of the workers that were running: after a restart the "
            "task is executed. The revoke is what is lost.",
            plain=LATE,
            does=Outcome.LOST,
            act=act,
            ends={"revoked": Ending.NOTHING},
        )
    )
