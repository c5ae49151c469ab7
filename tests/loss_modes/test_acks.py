"""Loss modes of the ack: when it is sent, and for what."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from tests.support.lossmodes.app import DEAD_LETTERS
from tests.support.lossmodes.scenario import Scenario, Stage
from tests.support.lossmodes.side import LATE, ONE, Side
from tests.support.lossmodes.verdict import Ending, Outcome

pytestmark = pytest.mark.one_broker


def _kill_a_pool_process(side: Side) -> None:
    side.start(ONE)
    side.send("t.crashes", "killed", "kill")
    side.wait_for_run("killed")
    side.work_off()


PROCESS_KILLED = Scenario(
    mode="process-killed",
    sentence="A pool process is killed while it runs a task (out of memory, a segfault, SIGKILL): the "
    "worker acks the task all the same.",
    plain=LATE,
    does=Outcome.LOST,
    act=_kill_a_pool_process,
    ends={"killed": Ending.EFFECT},
)


def test_a_pool_process_is_killed(stage: Stage) -> None:
    """Plain Celery acks a task whose process was killed; unlost runs it again."""
    stage.prove(PROCESS_KILLED)


def test_the_whole_process_group_is_stopped(stage: Stage) -> None:
    """A supervisor that signals children too costs plain Celery what they run; unlost gives it back."""

    def act(side: Side) -> None:
        worker = side.start(ONE)
        side.send("t.waits", "deployed")
        side.wait_for_run("deployed")
        children = psutil.Process(worker.pid).children(recursive=True)
        for pid in [*(child.pid for child in children), worker.pid]:
            os.kill(pid, signal.SIGTERM)
        side.see_dead(worker)
        side.note("release")
        side.start(ONE)
        side.work_off()

    stage.prove(
        Scenario(
            mode="group-stopped",
            sentence="A deploy sends SIGTERM to the worker's whole process group (systemd's default, "
            "`stopasgroup`): the interrupted children count as killed, and their tasks are acked.",
            plain=LATE,
            does=Outcome.LOST,
            act=act,
            ends={"deployed": Ending.EFFECT},
        )
    )


def test_a_failure_leaves_no_letter(stage: Stage) -> None:
    """Plain Celery acks a failed task although its queue has a dead-letter queue."""

    def act(side: Side) -> None:
        side.start(ONE)
        side.send("t.fails", "failing")
        side.wait_for_run("failing")
        side.work_off()

    stage.prove(
        Scenario(
            mode="failure-acked",
            sentence="A task that fails for good is acked, so the dead-letter queue beside its queue never "
            "sees it; only a result backend would remember it, for a day.",
            plain=LATE.and_(
                "a dead-letter queue", arguments={"x-dead-letter-exchange": DEAD_LETTERS}, dead_letters=True
            ),
            does=Outcome.LOST,
            act=act,
            ends={"failing": Ending.LETTER},
        )
    )


def test_the_worker_dies_after_an_early_ack(stage: Stage) -> None:
    """With Celery's default the task was acked before it began, and goes with its worker."""

    def act(side: Side) -> None:
        worker = side.start(ONE)
        side.send("t.crashes", "early", "kill-parent")
        side.see_dead(worker)
        side.start(ONE)
        side.work_off()

    stage.prove(
        Scenario(
            mode="acked-early",
            sentence="A task is acked before its body begins, Celery's default: whatever ends the worker "
            "then ends the task.",
            does=Outcome.LOST,
            act=act,
            ends={"early": Ending.EFFECT},
        )
    )


def test_a_reject_after_an_early_ack(stage: Stage) -> None:
    """``Reject(requeue=True)`` of a task that was acked early does nothing on plain Celery."""

    def act(side: Side) -> None:
        side.start(ONE)
        side.send("t.rejects", "rejected")
        side.wait_for_run("rejected")
        side.work_off()

    stage.prove(
        Scenario(
            mode="rejected-after-early-ack",
            sentence="A body raises `Reject(requeue=True)`, but the message was acked when it began: it does "
            "not come back, and no state says so.",
            does=Outcome.LOST,
            act=act,
            ends={"rejected": Ending.EFFECT},
        )
    )


def test_a_cold_stop_says_retry_and_sends_nothing(stage: Stage) -> None:
    """SIGQUIT marks an early-acked task as retried, and sends nothing; unlost gives the delivery back."""

    def act(side: Side) -> None:
        worker = side.start(ONE)
        side.send("t.waits", "cold")
        side.wait_for_run("cold")
        side.kill(worker, signal.SIGQUIT)
        side.note("release")
        side.start(ONE)
        side.work_off()

    stage.prove(
        Scenario(
            mode="cold-stop",
            sentence="A cold stop (SIGQUIT) interrupts a task that was acked early and records it as RETRY, "
            "but nothing is ever sent again.",
            does=Outcome.LOST,
            act=act,
            ends={"cold": Ending.EFFECT},
        )
    )
