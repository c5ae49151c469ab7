"""``apply`` on a live broker: what it creates keeps messages, and doing it again changes nothing."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import amqp
import pytest
from click.testing import CliRunner, Result

from tests.support.raw_amqp import get, open_channel, publish
from unlost.broker.apply import apply, pending
from unlost.broker.management import Management
from unlost.cli import main
from unlost.errors import AccessRefused, BrokerUnavailable, DeclarationConflict, TopologyError
from unlost.testing.brokers import Vhost
from unlost.testing.waiting import wait_until
from unlost.topology import naming
from unlost.topology.expand import expand
from unlost.topology.model import Delay, Topology, WorkQueue
from unlost.topology.objects import Exchange, Policy, Queue
from unlost.topology.plan import Action

STOCK = "shop.stock"
SECOND = timedelta(seconds=1)


def shop(levels: int = 4, **queue: object) -> Topology:
    """Build the topology of most tests: one queue, and few levels to be fast."""
    return Topology(name="shop", queues={STOCK: WorkQueue.model_validate(queue)}, delay=Delay(levels=levels))


@pytest.fixture
def management(vhost: Vhost) -> Iterator[Management]:
    """Return the management API of the test's own vhost."""
    with Management(vhost.management_url, vhost.name) as management:
        yield management


@pytest.fixture
def channel(vhost: Vhost, management: Management) -> Iterator[amqp.Channel]:
    """Return a confirming channel to a vhost that has the shop's topology."""
    apply(shop(), management)
    with open_channel(vhost.amqp_url) as channel:
        yield channel


def assert_in_effect(management: Management, queue: str, policy: Policy) -> None:
    """Assert that a queue has a leader and a policy; its settings too where the broker tells them."""
    status = management.queue(queue)
    assert status is not None
    assert status.leader is not None
    assert status.policy == policy.name
    if management.version() >= (4, 3):
        assert status.effective_policy == policy.definition


def delayed(channel: amqp.Channel, delay: timedelta, queue: str, levels: int = 4) -> None:
    """Publish into the delay path."""
    entry = naming.delay_entry_exchange("shop", levels)
    assert publish(channel, entry, naming.delay_routing_key(delay, queue, levels))


def test_a_second_apply_changes_nothing(management: Management) -> None:
    """Everything is created once; then there is nothing to do, and nothing is done."""
    steps = pending(shop(), management)
    first = apply(shop(), management)
    assert first.steps == steps
    assert {step.action for step in steps} == {Action.CREATE}
    before = management.objects()
    second = apply(shop(), management)
    assert (second.changed, second.unchanged) == (0, first.changed)
    assert management.objects() == before


def test_each_step_is_told_as_it_is_done(management: Management) -> None:
    """Progress is told step by step, in the order of the plan."""
    told: list[object] = []
    applied = apply(shop(), management, told.append)
    assert tuple(told) == applied.steps


def test_what_is_declared_is_in_effect_when_apply_returns(management: Management) -> None:
    """Once apply has returned, each queue has a leader and, where the broker tells, exactly its settings."""
    apply(shop(), management)
    expanded = expand(shop(), management.version())
    for queue in expanded.queues:
        policy = expanded.policy_of(queue)
        assert policy is not None
        assert_in_effect(management, queue.name, policy)


def test_all_levels_are_applied_within_seconds(management: Management) -> None:
    """The full delay path of 28 levels and a queue are there within a few seconds."""
    began = time.monotonic()
    apply(shop(levels=28), management)
    assert time.monotonic() - began < 30
    assert len(management.queues()) == 28 + 3


def test_a_changed_policy_is_put_back(management: Management) -> None:
    """Drift of a policy is one update, and it is in effect again when apply returns."""
    apply(shop(), management)
    (policy,) = (each for each in management.policies() if each.name == naming.queue_policy_of(STOCK))
    management.put_policy(replace(policy, definition={"max-length": 10}))
    applied = apply(shop(), management)
    assert [step.action for step in applied.steps] == [Action.UPDATE]
    assert policy in management.policies()
    assert_in_effect(management, STOCK, policy)


def test_a_publish_to_a_declared_queue_arrives(channel: amqp.Channel) -> None:
    """A mandatory publish with the queue's name as routing key is stored in that queue."""
    assert publish(channel, "shop", STOCK, "hello")
    assert get(channel, STOCK).body == "hello"


def test_a_publish_to_an_undeclared_queue_is_returned(channel: amqp.Channel) -> None:
    """The application's exchange has no alternate exchange, so the publisher hears of a wrong name."""
    assert not publish(channel, "shop", "shop.stok")


def test_a_rejected_message_is_in_its_dead_letter_queue(channel: amqp.Channel) -> None:
    """A reject without requeue ends in the queue's own dead-letter queue."""
    publish(channel, "shop", STOCK, "bad")
    channel.basic_reject(get(channel, STOCK).delivery_tag, requeue=False)
    assert get(channel, naming.dead_letter_queue_of(STOCK)).body == "bad"


@pytest.mark.parametrize("seconds", [1, 2, 3])
def test_a_delayed_message_is_never_early_and_hardly_late(channel: amqp.Channel, seconds: int) -> None:
    """A message on the delay path arrives no earlier than it is due, and within a second of it."""
    published = time.monotonic()
    delayed(channel, seconds * SECOND, STOCK)
    get(channel, STOCK)
    waited = time.monotonic() - published
    assert seconds <= waited < seconds + 1


def test_a_delayed_message_that_is_then_rejected_is_in_its_dead_letter_queue(channel: amqp.Channel) -> None:
    """The letter of a message that came with a delay routing key still finds its queue."""
    delayed(channel, SECOND, STOCK)
    message = get(channel, STOCK)
    assert message.delivery_info["routing_key"].endswith("q:shop.stock")
    channel.basic_reject(message.delivery_tag, requeue=False)
    assert get(channel, naming.dead_letter_queue_of(STOCK))


def test_a_delay_to_a_queue_that_is_not_bound_ends_in_unroutable(channel: amqp.Channel) -> None:
    """Nothing that the broker itself cannot route is dropped, or blocks the path."""
    delayed(channel, SECOND, "shop.gone")
    assert get(channel, naming.unroutable_queue_of("shop"))


def test_a_letter_to_no_queue_ends_in_unroutable(channel: amqp.Channel) -> None:
    """What no dead-letter queue takes is kept in unroutable."""
    publish(channel, naming.dead_letter_exchange_of("shop"), "shop.gone")
    assert get(channel, naming.unroutable_queue_of("shop"))


def test_a_delay_beyond_the_erlang_timer_leaves_its_queue_alive(vhost: Vhost, management: Management) -> None:
    """A message that waits four years does not disturb a short delay on the same path."""
    apply(shop(levels=28), management)
    with open_channel(vhost.amqp_url) as channel:
        delayed(channel, naming.longest_delay(28), STOCK, levels=28)
        delayed(channel, SECOND, STOCK, levels=28)
        assert get(channel, STOCK)
    status = management.queue(naming.delay_level("shop", 27))
    assert status is not None
    assert status.state == "running"


def test_looking_at_a_letter_does_not_delete_it(vhost: Vhost, channel: amqp.Channel) -> None:
    """A letter survives more looks than the broker's default delivery limit of 20."""
    letters = naming.dead_letter_queue_of(STOCK)
    publish(channel, naming.dead_letter_exchange_of("shop"), STOCK, "letter")
    for _ in range(25):
        with open_channel(vhost.amqp_url) as looking:
            get(looking, letters)
    assert get(channel, letters).body == "letter"


def test_totals_are_seen(management: Management, channel: amqp.Channel) -> None:
    """The total of a queue, which drain checks read, comes to count every message."""
    for _ in range(3):
        publish(channel, "shop", STOCK)

    def total() -> int | None:
        return {status.declared.name: status.messages for status in management.queues()}[STOCK]

    wait_until(lambda: total() == 3, timedelta(seconds=20), "3 messages are counted", why_not=total)


def test_a_classic_queue_of_the_name_is_a_conflict(management: Management) -> None:
    """A queue of another type is refused by name, before anything at all was created."""
    management.put_queue(Queue(name=STOCK, arguments={"x-queue-type": "classic"}))
    with pytest.raises(DeclarationConflict, match=r"shop\.stock.*quorum.*classic.*drain"):
        apply(shop(), management)
    assert management.policies() == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Exchange(name="e"), Exchange(name="e", type="fanout")),
        (
            Queue(name="q", arguments={"x-queue-type": "quorum"}),
            Queue(name="q", arguments={"x-queue-type": "classic"}),
        ),
    ],
)
def test_the_brokers_own_refusal_is_a_conflict(
    management: Management, first: Exchange | Queue, second: Exchange | Queue
) -> None:
    """An inequivalent declaration that the broker refuses is a conflict, with the broker's reason."""
    management.put(first)
    with pytest.raises(DeclarationConflict, match="inequivalent arg"):
        management.put(second)


def test_another_number_of_levels_is_refused(management: Management) -> None:
    """A delay path is not rebuilt for another number of levels under the messages that wait in it."""
    apply(shop(levels=4), management)
    with pytest.raises(TopologyError, match=r"delay\.levels"):
        apply(shop(levels=5), management)


def test_a_policy_that_overrules_ours_is_named(management: Management) -> None:
    """If another policy is in effect, apply says which, rather than reporting success."""
    management.put_policy(
        Policy(
            name="ops",
            pattern="^shop[.]stock$",
            apply_to="queues",
            definition={"max-length": 1},
            priority=999,
        )
    )
    with pytest.raises(TopologyError, match=r"governed by policy 'ops'.*priority below"):
        apply(shop(), management, patience=timedelta(seconds=2))


def test_a_wrong_password_is_refused_and_not_shown(vhost: Vhost) -> None:
    """A wrong password is AccessRefused; neither the error nor a repr holds it."""
    url = vhost.management_url.replace("http://", "").rpartition("@")[2]
    management = Management(f"http://guest:s3kret@{url}", vhost.name)
    with management, pytest.raises(AccessRefused, match=r"'guest'.*password") as caught:
        apply(shop(), management)
    assert "s3kret" not in f"{caught.value!r}{caught.value.__cause__!r}{management!r}"


def test_a_vhost_that_does_not_exist_is_named(vhost: Vhost) -> None:
    """A wrong vhost is AccessRefused and named, with the way out."""
    with (
        Management(vhost.management_url, "no-such-vhost") as management,
        pytest.raises(AccessRefused, match=r"'no-such-vhost' does not exist.*add_vhost"),
    ):
        apply(shop(), management)


@pytest.mark.parametrize("listening", [False, True])
def test_a_management_api_that_does_not_answer_is_unavailable_in_time(listening: bool) -> None:
    """Nobody listening and nobody answering are both BrokerUnavailable, well within the patience."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not listening:
            server.close()
        began = time.monotonic()
        with (
            Management(f"http://guest:s3kret@127.0.0.1:{port}", "/", timeout=SECOND) as management,
            pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}.*rabbitmq_management") as caught,
        ):
            apply(shop(), management)
        assert time.monotonic() - began < 10
        assert "s3kret" not in repr(caught.value)


def unlost(vhost: Vhost, *arguments: str) -> Result:
    """Run the command line in this process, against the test's vhost."""
    environment = {"UNLOST_BROKER_URL": vhost.amqp_url, "UNLOST_MANAGEMENT_URL": vhost.management_url}
    return CliRunner(env=environment).invoke(main, arguments)


def test_the_command_is_a_dry_run_unless_told_otherwise(
    vhost: Vhost, management: Management, tmp_path: Path
) -> None:
    """Without --yes apply lists the steps and exits with 1; with it they are done; then 0 remain."""
    path = tmp_path / "shop.yaml"
    path.write_text(f"name: shop\nqueues:\n  {STOCK}:\ndelay: {{levels: 2}}\n")
    dry = unlost(vhost, "topology", "apply", str(path))
    assert (dry.exit_code, management.policies()) == (1, [])
    assert f"+ {STOCK}  create" in dry.stdout
    done = unlost(vhost, "topology", "apply", str(path), "--yes", "--json", "--settle", "0")
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert report["applied"] is True
    assert f"{len(report['steps'])} create; 0 unchanged." in dry.stdout
    again = unlost(vhost, "topology", "apply", str(path))
    assert again.exit_code == 0
    assert "nothing to change" in again.stdout
