"""Loss modes of crashes: what is counted, against whom, and when it ends."""

from __future__ import annotations

import pytest

from tests.support.lossmodes.app import WORK
from tests.support.lossmodes.scenario import Scenario, Stage
from tests.support.lossmodes.side import LATE, ONE, QUORUM, REQUEUING, Side
from tests.support.lossmodes.verdict import Ending, Outcome

LIMIT = 2


def test_poison_goes_round_for_ever(stage: Stage) -> None:
    """What kills every process goes round for ever on plain Celery, and is a letter after three on unlost."""

    def act(side: Side) -> None:
        side.start(ONE)
        side.send("t.crashes", "poison", "kill", 99)
        side.wait_for_run("poison", 3 if side.plain is None else 6)

    stage.prove(
        Scenario(
            mode="poison-loop",
            sentence="`task_reject_on_worker_lost` requeues a task that kills its process without counting: "
            "on a classic queue it kills one process after the other.",
            plain=REQUEUING,
            does=Outcome.STUCK,
            act=act,
            ends={"poison": Ending.LETTER},
        )
    )


@pytest.mark.one_broker
def test_a_memory_error_ends_the_worker(stage: Stage) -> None:
    """``MemoryError`` in a body takes the whole of a plain worker down; under unlost the worker lives."""

    def act(side: Side) -> None:
        side.start(ONE)
        side.send("t.crashes", "greedy", "memory")
        side.wait_for_run("greedy")

    stage.prove(
        Scenario(
            mode="memory-error",
            sentence="A body raises `MemoryError`, which the worker's parent raises again: the worker ends, "
            "and the redelivered task ends the next one.",
            plain=LATE,
            does=Outcome.DIED,
            act=act,
            ends={"greedy": Ending.EFFECT},
        )
    )


def test_a_bystander_is_charged_for_crashes(stage: Stage) -> None:
    """A message that only waited beside crashes is dropped by the broker's delivery limit, without a run."""

    def act(side: Side) -> None:
        side.send("t.effect", "bystander")
        for _ in range(LIMIT + 1):
            side.give_back(WORK)
        side.start(ONE)
        side.work_off()

    stage.prove(
        Scenario(
            mode="delivery-limit",
            sentence="A quorum queue counts every return of a message, also of one that was merely "
            "prefetched by workers that died, and drops it at its limit (by default 20, from RabbitMQ 4.0).",
            plain=QUORUM.and_(f"a delivery limit of {LIMIT}", arguments={"x-delivery-limit": LIMIT}),
            does=Outcome.LOST,
            act=act,
            ends={"bystander": Ending.EFFECT},
        )
    )


@pytest.mark.one_broker
def test_a_hard_time_limit_calls_the_errback_twice(stage: Stage) -> None:
    """Plain Celery records the failure of a hard limit twice, with two errbacks; unlost tells it once."""

    def act(side: Side) -> None:
        side.start()
        side.send("t.too_slow", "slow", link_error=side.app.tasks["t.effect"].si("errback"))
        side.wait_for_run("errback")

    stage.prove(
        Scenario(
            mode="errback-twice",
            sentence="A hard time limit is reported to the worker twice, as an error and as a timeout: its "
            "errbacks are sent twice, under different ids.",
            plain=LATE,
            does=Outcome.REPEATED,
            act=act,
            ends={"errback": Ending.EFFECT},
            settings={"UNLOST_MAX_CRASHES": "1"},
        )
    )
