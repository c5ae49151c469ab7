"""Messages per second of each way to publish, on one broker, in one run; the last line is the ratios as JSON.

Every way but the raw one calls a task, by ``delay`` or in bulk, and all send the same kind of message (one
small argument, with Celery's headers) to a quorum queue of its own on the same node. The ways take turns, so
that a busy machine is busy for all of them; a ratio is taken within each round, and the median of the rounds
counts. Read the ratios: the figures themselves are this machine's. What a relay publishes from an outbox
(``benchmarks/outbox_relay.py``) comes last, in messages per second.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import amqp
from celery import Celery
from kombu import Exchange, Queue

import unlost
from benchmarks.outbox_relay import relay_rates
from benchmarks.raw import empty, raw_channel
from unlost.broker.apply import apply
from unlost.broker.management import Management
from unlost.tasks.runtime import runtime_of
from unlost.tasks.sink import captured
from unlost.testing.brokers import Vhost, start_broker
from unlost.topology.model import Delay, Topology, WorkQueue

WORK = "bench.work"
WINDOW = 200
BULK_WINDOW = 1000

#: Messages per second, by the name of the way.
Rates = dict[str, float]


@dataclass
class Bench:
    """What a way to publish may use: a vhost with the queue, an app with unlost, and one without."""

    vhost: Vhost
    reliable: Celery
    task: Any
    plain_task: Any
    confirmed_task: Any
    headers: dict[str, Any] = field(default_factory=dict)
    properties: dict[str, Any] = field(default_factory=dict)
    body: bytes | str = b""


class Charge(unlost.ReliableTask):
    """The task that is published."""

    name = "bench.charge"
    queue = WORK

    def run(self, number: int) -> None:
        """Never run."""


def celery_unconfirmed(bench: Bench, messages: int) -> None:
    """Publish as Celery does by default: into a socket, and nobody knows."""
    for number in range(messages):
        bench.plain_task.delay(number)


def celery_confirmed(bench: Bench, messages: int) -> None:
    """Publish with py-amqp's own confirms, a round trip each."""
    for number in range(messages):
        bench.confirmed_task.delay(number)


def single(bench: Bench, messages: int) -> None:
    """Publish by ``delay``, each confirmed and routable when it returns."""
    for number in range(messages):
        bench.task.delay(number)


def window(bench: Bench, messages: int) -> None:
    """Publish by ``delay`` in a block of ``unlost.publishing``."""
    with unlost.publishing(bench.reliable, window=WINDOW):
        for number in range(messages):
            bench.task.delay(number)


def apply_many(bench: Bench, messages: int) -> None:
    """Publish by ``apply_many``."""
    bench.task.apply_many(((number,) for number in range(messages)), window=BULK_WINDOW).raise_for_problems()


def raw_pipelined(bench: Bench, messages: int) -> None:
    """Publish with py-amqp and nothing else: 200 confirms in flight, the same headers, no bookkeeping."""
    with raw_channel(bench.vhost.amqp_url) as channel:
        confirmed = 0

        def on_ack(tag: int, _multiple: bool) -> None:
            nonlocal confirmed
            confirmed = max(confirmed, tag)

        channel.events["basic_ack"].add(on_ack)
        channel.confirm_select()
        for number in range(1, messages + 1):
            content = amqp.Message(bench.body, application_headers=bench.headers, **bench.properties)
            channel._basic_publish(content, "bench", WORK, mandatory=True)
            while number - confirmed >= WINDOW:
                channel.connection.drain_events(timeout=10)
        while confirmed < messages:
            channel.connection.drain_events(timeout=10)


@dataclass(frozen=True)
class Way:
    """A way to publish, and how many messages of the run it gets: slow ones need fewer."""

    publish: Callable[[Bench, int], None]
    share: float = 1.0


WAYS: dict[str, Way] = {
    "celery_unconfirmed": Way(celery_unconfirmed, 0.25),
    "celery_confirmed": Way(celery_confirmed, 0.1),
    "single": Way(single, 0.1),
    "window": Way(window, 0.25),
    "raw_pipelined": Way(raw_pipelined),
    "apply_many": Way(apply_many),
}

#: The ratios of the last line, each made from the rates of one round.
FIGURES: dict[str, Callable[[Rates], float]] = {
    "single_vs_celery_confirmed": lambda rates: rates["single"] / rates["celery_confirmed"],
    "window_vs_celery_confirmed": lambda rates: rates["window"] / rates["celery_confirmed"],
    "apply_many_vs_celery_confirmed": lambda rates: rates["apply_many"] / rates["celery_confirmed"],
    "apply_many_vs_celery_unconfirmed": lambda rates: rates["apply_many"] / rates["celery_unconfirmed"],
    "apply_many_vs_raw_pipelined": lambda rates: rates["apply_many"] / rates["raw_pipelined"],
}


@contextmanager
def bench_on(vhost: Vhost) -> Iterator[Bench]:
    """Declare the queue, and make the apps."""
    topology = Topology(name="bench", queues={WORK: WorkQueue()}, delay=Delay(levels=1))
    with Management(vhost.management_url, vhost.name) as management:
        apply(topology, management)
    with tempfile.TemporaryDirectory() as folder:
        reliable = Celery("bench", broker=vhost.amqp_url, set_as_current=False)
        unlost.install(reliable, topology=topology, store=f"sqlite:///{Path(folder) / 'ledger.sqlite'}")
        plain, confirmed = _plain(vhost, confirm=False), _plain(vhost, confirm=True)
        task = reliable.register_task(Charge())
        bench = Bench(vhost, reliable, task, plain.tasks[Charge.name], confirmed.tasks[Charge.name])
        with captured(runtime_of(reliable).sink) as sink:
            task.delay(1)
        (sample,) = sink.messages
        bench.headers, bench.body = dict(sample.headers), sample.body
        bench.properties = {name: value for name, value in sample.properties.items() if value is not None}
        try:
            yield bench
        finally:
            runtime_of(reliable).publisher.close()
            for app in (reliable, plain, confirmed):
                app.close()


def _plain(vhost: Vhost, *, confirm: bool) -> Celery:
    app = Celery("plain", broker=vhost.amqp_url, set_as_current=False)
    exchange = Exchange("bench", "topic", no_declare=True)
    app.conf.update(
        task_queues=[Queue(WORK, exchange, routing_key=WORK, no_declare=True)],
        task_ignore_result=True,
        broker_transport_options={"confirm_publish": confirm},
    )

    @app.task(name=Charge.name, queue=WORK, shared=False)
    def charge(number: int) -> None:
        """Never run."""

    return app


def run(bench: Bench, messages: int, rounds: int) -> list[Rates]:
    """Let every way publish in every round, there and back again, and return the rates of each round."""
    found: list[Rates] = []
    for number in range(rounds):
        rates: Rates = {}
        for name in list(WAYS) if number % 2 == 0 else reversed(WAYS):
            count = max(100, int(messages * WAYS[name].share))
            began = time.perf_counter()
            WAYS[name].publish(bench, count)
            rates[name] = count / (time.perf_counter() - began)
            _say(f"round {number + 1}  {name:24} {rates[name]:10,.0f}/s")
            empty(bench.vhost.amqp_url, WORK)
        found.append(rates)
    return found


def memory(bench: Bench, messages: int) -> dict[str, int]:
    """Return this process's largest resident size in KiB after a tenth of a bulk, and after all of it."""
    sizes: list[int] = []

    def note(bulk: Any) -> None:
        if bulk.confirmed in (messages // 10, messages):
            sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        if bulk.confirmed % 50_000 == 0:
            empty(bench.vhost.amqp_url, WORK)

    bench.task.apply_many(((n,) for n in range(messages)), progress=note).raise_for_problems()
    return {"messages": messages, "after_a_tenth_kib": sizes[0], "after_all_kib": sizes[-1]}


def main(arguments: list[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000, help="of the fastest ways, in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--memory", type=int, metavar="N", help="publish N in one bulk and show memory instead"
    )
    options = parser.parse_args(arguments)
    with (
        start_broker(None, environ=os.environ) as broker,
        broker.fresh_vhost() as vhost,
        bench_on(vhost) as bench,
    ):
        if options.memory:
            _say(json.dumps(memory(bench, options.memory)))
            return 0
        for way in WAYS.values():
            way.publish(bench, 200)
        empty(vhost.amqp_url, WORK)
        rounds = run(bench, options.messages, options.rounds)
        relays = relay_rates(vhost, options.messages, rounds=options.rounds, say=_say)
    for name in WAYS:
        _say(f"median   {name:24} {statistics.median(rates[name] for rates in rounds):10,.0f}/s")
    ratios = {name: statistics.median(map(figure, rounds)) for name, figure in FIGURES.items()}
    _say(json.dumps({name: round(figure, 2) for name, figure in {**ratios, **relays}.items()}))
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
