"""A run in which the broker itself dead-letters while the queue of letters is down, and its history.

Nothing of unlost works here but the topology: a consumer rejects every message, and the policies decide what
becomes of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import amqp

from tests.support.raw_amqp import open_channel, publish
from unlost.broker.apply import apply
from unlost.broker.management import Management
from unlost.chaos.drain import record_letters, record_residue, wait_until_drained
from unlost.chaos.history import History, Recorder, load
from unlost.chaos.workload import Workload
from unlost.testing.brokers import Broker, Vhost
from unlost.topology import naming
from unlost.topology.model import Topology, WorkQueue

WORK = "t.work"
LETTERS = naming.dead_letter_queue_of(WORK)
TOPOLOGY = Topology(name="t", queues={WORK: WorkQueue()})
MESSAGES = 50
PATIENCE = timedelta(seconds=60)

#: How long the broker waits for the confirm of a dead letter before it sends that again, in milliseconds;
#: nothing but this setting of the node can make its three minutes fit into a test.
_AGAIN, _USUAL = 2_000, 180_000


@dataclass(frozen=True, kw_only=True)
class Rejected(Workload):
    """Tasks that nobody carries out."""

    def publish(self, number: int) -> None:
        """Not published through the kit."""
        raise NotImplementedError

    def value_of(self, _task: str, args: Sequence[Any], _kwargs: Mapping[str, Any]) -> str | None:
        """Return the number of the message."""
        return str(args[0])

    def effects(self) -> Iterator[tuple[str, int]]:
        """Return nothing: every message is rejected."""
        return iter(())


def run(broker: Broker, folder: Path, *, at_least_once: bool) -> History:
    """Publish, reject everything while the queue of letters is down, have it up again, drain, read."""
    with (
        broker.fresh_vhost() as vhost,
        Management(vhost.management_url, vhost.name) as management,
        Recorder(folder / "history.jsonl") as recorder,
    ):
        with _resending_soon(broker):
            apply(TOPOLOGY, management)
        if not at_least_once:
            _let_go_of_the_strategy(management)
        _publish(vhost, recorder)
        with _down(broker, vhost, LETTERS):
            recorder.record("nemesis", "info", "queue_down", LETTERS)
            _reject_all(vhost)
        recorder.record("nemesis", "ok", "queue_down", LETTERS)
        wait_until_drained(management, [LETTERS], PATIENCE)
        record_residue(management, [LETTERS], recorder)
        record_letters(vhost.amqp_url, [LETTERS], Rejected(), recorder)
    return load(folder / "history.jsonl")


def _let_go_of_the_strategy(management: Management) -> None:
    """Dead-letter at most once, which is the broker's default."""
    for policy in management.policies():
        kept = {name: value for name, value in policy.definition.items() if name != "dead-letter-strategy"}
        management.put_policy(replace(policy, definition=kept))


def _publish(vhost: Vhost, recorder: Recorder) -> None:
    with open_channel(vhost.amqp_url) as channel:
        for number in range(MESSAGES):
            recorder.record("client", "invoke", "publish", str(number))
            if not publish(channel, "", WORK, json.dumps([[number], {}, {}])):
                raise AssertionError(f"message {number} found no queue")
            recorder.record("client", "ok", "publish", str(number))


def _reject_all(vhost: Vhost) -> None:
    with open_channel(vhost.amqp_url) as channel:
        for _ in range(MESSAGES):
            message: amqp.Message = channel.basic_get(WORK)
            channel.basic_reject(message.delivery_tag, requeue=False)


@contextmanager
def _down(broker: Broker, vhost: Vhost, queue: str) -> Iterator[None]:
    """Stop a quorum queue's only member, as the loss of its node would, and start it again."""
    member = f"{{'{vhost.name}_{queue}', node()}}"
    broker.rabbitmqctl("eval", f"ra:stop_server(quorum_queues, {member}).")
    try:
        yield
    finally:
        broker.rabbitmqctl("eval", f"ra:restart_server(quorum_queues, {member}).")


@contextmanager
def _resending_soon(broker: Broker) -> Iterator[None]:
    """Have what dead-letters for queues that are declared meanwhile send again soon."""
    setting = "application:set_env(rabbit, dead_letter_worker_publisher_confirm_timeout, {})."
    broker.rabbitmqctl("eval", setting.format(_AGAIN))
    try:
        yield
    finally:
        broker.rabbitmqctl("eval", setting.format(_USUAL))
