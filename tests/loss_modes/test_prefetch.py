"""Loss modes of what a worker holds without running it."""

from __future__ import annotations

import pytest

from tests.support.lossmodes.scenario import Scenario, Stage
from tests.support.lossmodes.side import LATE, ONE, QUORUM, Side
from tests.support.lossmodes.verdict import Ending, Outcome

pytestmark = [pytest.mark.one_broker, pytest.mark.long]


def test_a_busy_worker_hoards_what_an_idle_one_could_run(stage: Stage) -> None:
    """A task that was prefetched behind a long one waits for it, beside an idle worker; not with unlost."""

    def act(side: Side) -> None:
        side.start(ONE)
        side.send("t.waits", "long")
        side.wait_for_run("long")
        side.send("t.effect", "behind")
        side.start(ONE)

    stage.prove(
        Scenario(
            mode="prefetch-hoarding",
            sentence="A worker prefetches four messages for each process and queue: what lies behind a long "
            "task waits for it although another worker is idle.",
            plain=LATE,
            does=Outcome.STUCK,
            act=act,
            ends={"behind": Ending.EFFECT},
        )
    )


def test_delayed_tasks_fill_the_worker(stage: Stage) -> None:
    """Tasks that are not due hold every slot of the prefetch window; on unlost they wait in the broker."""

    def act(side: Side) -> None:
        for number in range(6):
            side.send("t.effect", f"later-{number}", countdown=60)
        side.start(ONE)
        side.send("t.effect", "now")

    stage.prove(
        Scenario(
            mode="delayed-tasks-hoarded",
            sentence="On a quorum queue behind a direct exchange, as in the example of Celery's "
            "documentation, countdowns are held by the worker, and the window cannot grow: some of them "
            "block all others.",
            plain=QUORUM.and_("a direct exchange", exchange_type="direct"),
            does=Outcome.STUCK,
            act=act,
            ends={"now": Ending.EFFECT},
        )
    )
