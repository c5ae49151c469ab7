"""A scenario, run on both sides at once; its record, and what it must have shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.support.lossmodes.record import Record
from tests.support.lossmodes.side import DEFAULTS, Plain, Side, side
from tests.support.lossmodes.verdict import Ending, Evidence, Outcome, endings_of, has_ended, judge
from tests.support.workers import SOON
from unlost.errors import HarnessError
from unlost.testing.brokers import Broker
from unlost.testing.waiting import wait_until

#: How long a task may take on plain Celery to end well after all; only what ends badly is waited for so long.
PLAIN_PATIENCE = timedelta(seconds=2)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What happens to the tasks of one loss mode.

    Attributes:
        mode: Its name, which is for ever.
        sentence: What goes wrong, and why.
        plain: How plain Celery is set up.
        does: What plain Celery makes of it.
        or_else: What it makes of it at other times, if that is a matter of luck.
        act: Starts workers, publishes, and breaks what is to break; waits for the signs of it.
        ends: How each task ends under unlost.
        settings: Environment variables of both sides.
        conf: Celery's settings of both sides.
        work_queue: What unlost's topology says of its first queue.
        patience: How long to wait for plain Celery to do well after all.
    """

    mode: str
    sentence: str
    does: Outcome
    act: Callable[[Side], None]
    ends: Mapping[str, Ending]
    plain: Plain = DEFAULTS
    settings: Mapping[str, str] = field(default_factory=dict)
    conf: Mapping[str, Any] = field(default_factory=dict)
    work_queue: Mapping[str, Any] | None = None
    patience: timedelta = PLAIN_PATIENCE
    or_else: Outcome | None = None


@dataclass(frozen=True)
class Stage:
    """Where scenarios are run.

    Attributes:
        broker: Shared by both sides and by other tests.
        folder: For stores and logs.
        test: Of the scenario, for its record.
        records: Where to write the record; ``None`` writes none.
        swapped: Run plain Celery where unlost should be, to see that the test notices.
    """

    broker: Broker
    folder: Path
    test: str
    records: Path | None = None
    swapped: bool = False

    @property
    def results(self) -> Path:
        """Return the folder of a result backend that works."""
        folder = self.folder / "results"
        folder.mkdir(exist_ok=True)
        return folder

    def prove(self, scenario: Scenario) -> None:
        """Run a scenario on both sides and check what became of the tasks.

        Raises:
            AssertionError: unlost did not keep its promise, or plain Celery did not do what is said of it.
        """
        with ThreadPoolExecutor(2) as pool:
            under_plain = pool.submit(self._run, scenario, scenario.plain, "plain")
            under_unlost = pool.submit(
                self._run, scenario, scenario.plain if self.swapped else None, "unlost"
            )
            plain, reliable = under_plain.result(), under_unlost.result()
        did = judge(plain, scenario.ends)
        kept = judge(reliable, scenario.ends)
        if self.records is not None and not self.swapped:
            self._record(scenario, did, kept).write(self.records)
        assert kept is Outcome.FINE, f"unlost: {kept}: {reliable}"
        ended = {label: endings_of(label, reliable) for label in scenario.ends}
        assert ended == dict(scenario.ends), f"unlost: {reliable}"
        assert did in (scenario.does, scenario.or_else), f"plain Celery: {did}: {plain}"

    def _run(self, scenario: Scenario, plain: Plain | None, name: str) -> Evidence:
        """Run one side; a scenario on plain Celery need not come to an end."""
        given = (scenario.settings, scenario.conf, scenario.work_queue)
        with side(self.broker, self.folder / name, plain, *given) as stage:
            scenario.act(stage)
            if name == "unlost" and not self.swapped:
                _wait(lambda: stage.has_died or has_ended(stage.evidence(), scenario.ends), SOON)
            elif scenario.does is Outcome.REPEATED:
                _wait(lambda: judge(stage.evidence(), scenario.ends) is Outcome.REPEATED, SOON)
            elif scenario.does is Outcome.DIED:
                _wait(lambda: stage.has_died, SOON)
            else:
                _wait(lambda: has_ended(stage.evidence(), scenario.ends), scenario.patience)
            return stage.finish(scenario.ends)

    def _record(self, scenario: Scenario, did: Outcome, kept: Outcome) -> Record:
        return Record(
            mode=scenario.mode,
            sentence=scenario.sentence,
            plain=scenario.plain.hardening,
            outcome=str(did),
            unlost=", ".join(sorted(set(map(str, scenario.ends.values()))))
            if kept is Outcome.FINE
            else str(kept),
            test=self.test,
            rabbitmq=".".join(map(str, self.broker.version)),
            celery=version("celery"),
        )


def _wait(condition: Callable[[], bool], patience: timedelta) -> None:
    """Wait for something that need not come: what is there then is looked at all the same."""
    with suppress(HarnessError):
        wait_until(condition, patience, "it is so", poll=timedelta(milliseconds=200))
