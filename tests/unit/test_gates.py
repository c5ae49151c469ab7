"""What a worker's parent keeps of queues behind a breaker or a limit, and what is refused of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

import unlost
from tests.support.apps import OTHER, WORK, close, shop
from unlost.core.breaker import Circuit, CircuitState
from unlost.errors import ConfigurationError
from unlost.tasks.gates import PROBE, Gate, Tally, Traffic, gates_of
from unlost.topology.model import Topology, WorkQueue

NOWHERE = "amqp://guest:guest@127.0.0.1:1//"
BANK = unlost.Breaker(name="bank")
SLOW = unlost.Limit(name="slow", rate=1)


class Message:
    """A delivery, as far as it matters here."""

    def __init__(self, *, probe: bool = False) -> None:
        self.delivery_info = {PROBE: probe}


class Request:
    """A request that can be told apart."""


@pytest.fixture
def traffic() -> Traffic:
    """The account of one queue."""
    made = Traffic()
    made.watch(["q"], {"t": "q"})
    return made


def ended(traffic: Traffic, *, ok: bool | None, probe: bool = False) -> None:
    """Have a delivery of the task begin and end."""
    request = Request()
    traffic.begin(request, "t", {PROBE: probe})
    traffic.end(request, "t", {PROBE: probe}, ok=ok)


def test_ends_are_counted_once_and_what_tells_nothing_is_not(traffic: Traffic) -> None:
    """Each of them once, also when its request is let go of twice."""
    for ok in (True, False, None):
        ended(traffic, ok=ok)
    request = Request()
    traffic.begin(request, "t", {})
    assert traffic.running("q") == 1
    traffic.end(request, "t", {}, ok=True)
    traffic.end(request, "t", {}, ok=True)
    assert traffic.running("q") == 0
    assert traffic.take_tally("q") == Tally(ok=2, failed=1)
    assert traffic.take_tally("q") == Tally()


def test_a_request_that_celery_drops_is_nobodys(traffic: Traffic) -> None:
    """After a lost connection nothing is told of it any more, and it must not take a slot for ever."""
    request: Request | None = Request()
    traffic.begin(request, "t", {})
    del request
    assert traffic.running("q") == 0


def test_after_a_failure_deliveries_wait_until_the_store_was_told(traffic: Traffic) -> None:
    """The failure may have opened the circuit; a probe is what it waits for and never waits itself."""
    message = Message()
    assert not traffic.defers("t", message)
    ended(traffic, ok=False)
    assert traffic.defers("t", message)
    assert not traffic.defers("t", Message(probe=True))
    assert traffic.take_deferred("q") == []
    traffic.take_tally("q")
    assert traffic.take_deferred("q") == [message]
    assert not traffic.defers("t", message)


def test_while_the_circuit_is_open_deliveries_wait(traffic: Traffic) -> None:
    """What the broker had sent before the consumer was cancelled is not run."""
    traffic.see("q", Circuit(state=CircuitState.OPEN))
    assert traffic.defers("t", Message())
    traffic.see("q", Circuit())
    assert not traffic.defers("t", Message())


def test_a_probe_answers_for_itself_alone(traffic: Traffic) -> None:
    """The ends of other deliveries are no answer."""
    traffic.begin_probe("q")
    assert not traffic.has_probe("q")
    ended(traffic, ok=True)
    assert traffic.answers("q") == []
    ended(traffic, ok=False, probe=True)
    assert traffic.has_probe("q")
    assert traffic.answers("q") == [False]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Celery]:
    """An installed app whose broker is never reached."""
    made = Celery("shop", broker=NOWHERE, set_as_current=False)
    unlost.install(made, topology=shop(), store=f"sqlite:///{tmp_path / 'l.sqlite'}")
    yield made
    close(made)


def register(app: Celery, name: str, **options: Any) -> Any:
    """Register a task with these attributes."""

    def run() -> None:
        """Never run."""

    return app.task(run, name=name, base=unlost.ReliableTask, lazy=False, shared=False, **options)


def test_the_tasks_of_a_queue_share_its_gate(app: Celery) -> None:
    """One that differs is refused, with both names and the way out; another queue is another matter."""
    one = register(app, "one", queue=WORK, breaker=BANK)
    two = register(app, "two", queue=WORK, breaker=unlost.Breaker(name="bank"))
    other = register(app, "other", queue=OTHER, limit=SLOW)
    assert gates_of(app, [one, two, other]) == {WORK: Gate(WORK, BANK), OTHER: Gate(OTHER, None, SLOW)}
    plain = register(app, "plain", queue=WORK)
    with pytest.raises(ConfigurationError, match=r"one and plain share queue .*a queue each"):
        gates_of(app, [one, plain])


@pytest.mark.parametrize("gate", [{"breaker": BANK}, {"limit": SLOW}])
def test_without_a_store_there_are_no_gates(gate: dict[str, Any]) -> None:
    """The task is refused, and the error names the way out."""
    app = Celery("shop", broker=NOWHERE, set_as_current=False)
    bare = Topology(name="shop", queues={WORK: WorkQueue(without_store=True)})
    unlost.install(app, topology=bare, store="none://")
    with pytest.raises(ConfigurationError, match=r"the app has none: give install\(app, store=\.\.\.\) one"):
        register(app, "one", queue=WORK, **gate)


def test_celerys_rate_limit_is_refused_with_what_to_use_instead(app: Celery) -> None:
    """It would hold messages in each worker's memory."""
    with pytest.raises(ConfigurationError, match=r"limit=unlost\.Limit"):
        register(app, "one", queue=WORK, rate_limit="10/m")
