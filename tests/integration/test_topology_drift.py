"""Drift on a live broker: found, classed, repaired, and never at the cost of messages."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, Phase, given, settings

from tests.support.raw_amqp import get, open_channel, publish
from tests.support.topologies import full_topologies
from unlost.broker import guards
from unlost.broker.apply import apply, compare
from unlost.broker.inventory import live_of
from unlost.broker.management import Management
from unlost.broker.verify import Verdict, verify
from unlost.cli import main
from unlost.errors import AccessRefused, DeclarationConflict, TopologyError
from unlost.testing.brokers import Broker, Vhost
from unlost.testing.waiting import wait_until
from unlost.topology import naming
from unlost.topology.definitions import definitions_of
from unlost.topology.effective import Rules, effect_on
from unlost.topology.expand import expand
from unlost.topology.model import Delay, Topology, WorkQueue
from unlost.topology.objects import (
    Binding,
    BrokerObject,
    Exchange,
    OperatorPolicy,
    Policy,
    Queue,
    User,
    content,
    identity,
)
from unlost.topology.plan import Action

pytestmark = pytest.mark.one_broker

STOCK = "shop.stock"
SHOP = Topology(name="shop", queues={STOCK: WorkQueue()}, delay=Delay(levels=2))
PATIENCE = timedelta(seconds=30)


@pytest.fixture
def management(vhost: Vhost) -> Iterator[Management]:
    """Return the management API of the test's own vhost."""
    with Management(vhost.management_url, vhost.name) as management:
        yield management


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for a second only: the test waits itself until the totals are what they should be."""
    monkeypatch.setattr(guards, "_TOTALS_ARE_OLD", timedelta(seconds=1))


def objects(**said: object) -> Topology:
    """Build a topology of single objects."""
    return Topology.model_validate({"objects": said})


def stock_policy(management: Management) -> Policy:
    """Return the policy of the work queue as it is live."""
    (found,) = (each for each in management.policies() if each.name == naming.queue_policy_of(STOCK))
    return found


@settings(
    deadline=None,
    max_examples=6,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes minutes on a broker
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(topology=full_topologies())
def test_what_is_applied_is_read_back(broker: Broker, topology: Topology) -> None:
    """Any topology, applied, reads back as it was declared, and a second apply has nothing to do."""
    with broker.fresh_vhost() as vhost, Management(vhost.management_url, vhost.name) as management:
        expanded = expand(topology, management.version())
        applied = apply_despite_ties(topology, management)
        assert applied == len(expanded.objects)
        live = live_of(management, {each.kind for each in expanded.objects}).objects
        found = {identity(each): content(each) for each in live}
        for each in expanded.objects:
            if each.kind != "vhost":
                assert found[identity(each)] == content(each)
        assert compare(topology, management).allowed(unbind=True, destroy=True) == ()


def apply_despite_ties(topology: Topology, management: Management) -> int:
    """Apply, and return the number of changes; a tie between generated policies is none of our business."""
    told: list[object] = []
    try:
        apply(topology, management, told.append, patience=timedelta(seconds=8))
    except TopologyError as exc:
        if "governed by" not in str(exc) and "instead of" not in str(exc):
            raise
    return len(told)


def test_drift_made_by_hand_is_found_and_repaired(management: Management) -> None:
    """A changed policy, a deleted queue, binding and exchange are found by plan and put back by one apply."""
    apply(SHOP, management)
    policy = stock_policy(management)
    management.put(
        replace(
            policy,
            definition={**policy.definition, "consumer-timeout": 60_000}
            if management.version() >= (3, 12)
            else {**policy.definition, "max-length": 9},
        )
    )
    binding = Binding(source="shop", destination=STOCK, routing_key=STOCK)
    letters = Queue(name=naming.dead_letter_queue_of(STOCK))
    for gone in (binding, letters):
        management.delete(gone)
    drift = {str(step) for step in compare(SHOP, management).drift}
    assert drift == {
        f"update in place policy {policy.name}",
        f"create binding {binding.key}",
        f"create queue {letters.name}",
        f"create binding shop.dlx -> {letters.name} [{STOCK}]",
    }
    assert apply(SHOP, management).changed == 4
    assert compare(SHOP, management).drift == ()


def test_an_apply_that_is_stopped_anywhere_is_finished_by_the_next(broker: Broker) -> None:
    """Whatever step an apply is stopped after, the next one does the rest, and nothing twice."""
    topology = Topology(name="s", queues={"s.w": WorkQueue()}, delay=Delay(levels=1))
    total = len(expand(topology, (4, 3)).objects)
    for stopped_after in range(1, total, 5):
        with broker.fresh_vhost() as vhost, Management(vhost.management_url, vhost.name) as management:
            steps = iter(range(stopped_after - 1))

            def stop(_: object, steps: Iterator[int] = steps) -> None:
                if next(steps, None) is None:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                apply(topology, management, stop)
            assert apply(topology, management).changed == total - stopped_after
            assert compare(topology, management).drift == ()


def test_two_applies_at_once_do_no_harm(vhost: Vhost, management: Management) -> None:
    """Two applies of one topology at the same time both succeed, and all of it is there once."""
    together = threading.Barrier(2)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with Management(vhost.management_url, vhost.name) as own:
                together.wait(30)
                apply(SHOP, own)
        except BaseException as exc:  # noqa: BLE001 - reported below
            errors.append(exc)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []
    assert compare(SHOP, management).drift == ()
    assert len(management.bindings()) == len(expand(SHOP, management.version()).bindings)


def test_an_undeclared_binding_is_removed_with_a_flag_only(management: Management) -> None:
    """A second way into a queue stays without the flag, and is gone with it; the declared one stays."""
    apply(SHOP, management)
    for stale in (
        Binding(source="shop", destination=STOCK, routing_key="old name/~"),
        Binding(source="shop", destination=STOCK, routing_key="", arguments={"n": 1}),
    ):
        management.put(stale)
        first = apply(SHOP, management)
        assert [step.object for step in first.withheld] == [stale]
        assert stale.key in {each.key for each in management.bindings()}
        apply(SHOP, management, allow_unbind=True)
        assert compare(SHOP, management).drift == ()


def test_a_queue_with_messages_is_not_deleted(vhost: Vhost, management: Management) -> None:
    """An owned queue that is no longer declared is deleted with a flag, but not while messages are inside."""
    old = Queue(name="shop.old", arguments={"x-queue-type": "quorum"})
    management.put(old)
    owning = SHOP.model_copy(update={"owns": ("shop[.].*",)})
    assert [step.object for step in apply(owning, management).withheld] == [old]
    with open_channel(vhost.amqp_url) as channel:
        assert publish(channel, "", old.name, "kept")
        with pytest.raises(TopologyError, match=r"delete queue shop\.old is refused.*holds 1 messages"):
            apply(owning, management, allow_destroy=True)
        message = get(channel, old.name)
        channel.basic_ack(message.delivery_tag)
    wait_until(lambda: management.queue(old.name).messages == 0, PATIENCE, "the queue is empty")  # type: ignore[union-attr]
    assert apply(owning, management, allow_destroy=True).changed == 1
    assert management.queue(old.name) is None


@pytest.mark.usefixtures("hurried")
def test_at_least_once_is_not_left_while_letters_are_pending(vhost: Vhost, management: Management) -> None:
    """A dead letter that waits for its confirm keeps its queue's settings; without one they can go."""
    safe = {
        "dead-letter-exchange": "nowhere",
        "dead-letter-strategy": "at-least-once",
        "overflow": "reject-publish",
    }
    said = {"w": {"pattern": "^w$", "definition": safe}}
    without = {"w": {"pattern": "^w$", "definition": {"overflow": "reject-publish"}}}
    declared, changed = (objects(queues={"w": None}, policies=rule) for rule in (said, without))
    apply(declared, management)
    assert apply(changed, management, allow_destroy=True).changed == 1
    apply(declared, management)
    with open_channel(vhost.amqp_url) as channel:
        publish(channel, "", "w", "letter")
        channel.basic_reject(get(channel, "w").delivery_tag, requeue=False)
    wait_until(
        lambda: management.queue("w").messages == 1 and management.pending_letters("w") == 1,  # type: ignore[union-attr]
        PATIENCE,
        "the letter is pending",
    )
    (step,) = compare(changed, management).drift
    assert step.action is Action.DESTRUCTIVE
    assert [each.object.kind for each in apply(changed, management).withheld] == ["policy"]
    with pytest.raises(TopologyError, match="holds 1 pending dead letters"):
        apply(changed, management, allow_destroy=True)
    assert next(each for each in management.policies() if each.name == "w").definition == safe


def test_what_policies_make_of_a_queue_is_what_the_broker_says(management: Management) -> None:
    """Policy in effect and merged settings, as computed, are those that the broker reports."""
    rules = [
        Policy(name="low", pattern="^w", apply_to="queues", definition={"max-length": 9}, priority=1),
        Policy(name="high", pattern="^w", apply_to="queues", definition={"delivery-limit": 5}, priority=2),
        Policy(name="other", pattern="^nope", apply_to="queues", definition={"max-length": 1}, priority=9),
    ]
    guard = OperatorPolicy(name="o", pattern="^w", apply_to="queues", definition={"delivery-limit": 3})
    queues = [Queue(name=f"w-{kind}", arguments={"x-queue-type": kind}) for kind in ("quorum", "classic")]
    there: list[BrokerObject] = [*rules, guard, *queues]
    for each in there:
        management.put(each)
    policies, operators = Rules(rules), Rules([guard])
    expected = {queue.name: effect_on(queue, policies, operators) for queue in queues}

    def matches() -> bool:
        live = {each.declared.name: each for each in management.queues()}
        return all(
            live[name].policy == (effect.policy.name if effect.policy else None)
            and live[name].effective_policy in (None, dict(effect.definition))
            for name, effect in expected.items()
        )

    wait_until(matches, PATIENCE, "policies are in effect", why_not=management.queues)
    assert {name: effect.policy.name for name, effect in expected.items() if effect.policy} == {
        "w-quorum": "high",
        "w-classic": "low",
    }


@pytest.fixture
def users(management: Management) -> Iterator[list[str]]:
    """Return names of users that are deleted at the end: users belong to the whole broker."""
    names = [f"user-{management.vhost}", f"limited-{management.vhost}"]
    yield names
    for name in names:
        management.delete(User(name=name))


def test_users_permissions_and_limits_are_applied(
    vhost: Vhost, management: Management, users: list[str]
) -> None:
    """A user can log in with its password; another one is drift; a tag can change alone."""
    name = users[0]
    said = {
        "vhost": {"description": "the shop", "limits": {"max-queues": 99}},
        "users": {name: {"tags": ["management"], "password_env": "P", "limits": {"max-channels": 9}}},
        "permissions": {name: {"read": "^shop"}},
        "topic_permissions": {name: {"amq.topic": {"write": "^a", "read": "^b"}}},
    }
    topology = objects(**said)
    assert apply(topology, management, secrets={"P": "s3kret"}).changed == 6
    assert compare(topology, management, {"P": "s3kret"}).drift == ()
    assert _login(vhost, name, "s3kret") == 200
    (step,) = compare(topology, management, {"P": "other"}).drift
    assert (step.object.kind, "s3kret" in repr(step)) == ("user", False)
    open_password = objects(users={name: {"tags": ["monitoring"], "limits": {"max-channels": 9}}})
    assert apply(open_password, management).changed == 1
    assert _login(vhost, name, "s3kret") == 200


def _login(vhost: Vhost, name: str, password: str) -> int:
    place = vhost.management_url.rpartition("@")[2]
    return httpx.get(f"http://{place}/api/whoami", auth=(name, password), trust_env=False).status_code


def test_what_a_user_may_not_read_or_change_is_said(
    vhost: Vhost, management: Management, users: list[str]
) -> None:
    """A user without the tags gets a refusal that names it and the missing right, before any change."""
    name = users[1]
    said = {
        "users": {name: {"tags": ["management"], "password_env": "P"}},
        "permissions": {name: {"read": ".*"}},
    }
    apply(objects(**said), management, secrets={"P": "s3kret"})
    place = vhost.management_url.rpartition("@")[2]
    with Management(f"http://{name}:s3kret@{place}", vhost.name) as limited:
        with pytest.raises(AccessRefused, match=f"user '{name}' is refused.*policymaker") as caught:
            apply(SHOP, limited)
        assert "s3kret" not in repr(caught.value)
    policymaker = {**said, "users": {name: {"tags": ["policymaker"], "password_env": "P"}}}
    apply(objects(**policymaker), management, secrets={"P": "s3kret"})
    with Management(f"http://{name}:s3kret@{place}", vhost.name) as limited:
        with pytest.raises(AccessRefused, match="may not read"):
            apply(objects(**said), limited, secrets={"P": "s3kret"})
        with pytest.raises(AccessRefused, match=f"'{name}'"):
            apply(SHOP, limited)  # it may set policies and configure nothing
    assert {each.declared.name for each in management.queues()} == set()
    assert apply(SHOP, management).changed > 0
    assert compare(SHOP, management).drift == ()


def test_definitions_are_imported_as_declared(vhost: Vhost, management: Management) -> None:
    """The exported definitions, imported by the broker itself, are exactly the topology."""
    expanded = expand(SHOP, management.version())
    definitions = definitions_of(expanded.objects, vhost.name, lambda: b"salt")
    url = f"{vhost.management_url}/api/definitions"
    httpx.post(url, json=definitions, timeout=60, trust_env=False).raise_for_status()
    wait_until(lambda: compare(SHOP, management).drift == (), PATIENCE, "the import is complete")


def unlost(vhost: Vhost, *arguments: str) -> Result:
    """Run the command line in this process, against the test's vhost."""
    environment = {"UNLOST_BROKER_URL": vhost.amqp_url, "UNLOST_MANAGEMENT_URL": vhost.management_url}
    return CliRunner(env=environment).invoke(main, ["topology", *arguments])


def test_an_existing_system_can_be_adopted(vhost: Vhost, management: Management, tmp_path: Path) -> None:
    """What is imported from a live broker finds nothing to change there, and finds a later change."""
    there: list[BrokerObject] = [
        Exchange(name="e", type="headers"),
        Queue(name="legacy", arguments={"x-queue-type": "classic", "x-max-priority": 3, "x-own": "y"}),
        Queue(name="log", arguments={"x-queue-type": "stream", "x-max-age": "1D"}),
        Binding(source="e", destination="legacy", arguments={"x-match": "all", "n": 1}),
        Binding(source="amq.topic", destination="log", routing_key="#"),
    ]
    policy = Policy(name="p", pattern="^legacy", apply_to="queues", definition={"max-length": 9})
    for each in (*there, policy):
        management.put(each)
    path = tmp_path / "found.yaml"
    path.write_text(unlost(vhost, "import").stdout)
    same = unlost(vhost, "plan", str(path))
    assert (same.exit_code, "nothing to change" in same.stdout) == (0, True)
    management.put(replace(policy, definition={"max-length": 5}))
    drifted = unlost(vhost, "plan", str(path), "--json")
    assert drifted.exit_code == 1
    (step,) = json.loads(drifted.stdout)["steps"]
    assert (step["action"], step["reasons"]) == ("update in place", ["definition.max-length: 5 -> 9"])


def test_a_plan_is_grouped_and_says_why(vhost: Vhost, management: Management, tmp_path: Path) -> None:
    """The plan names kinds, classes and reasons; immutable drift refuses the apply before any change."""
    management.put(Queue(name="w", arguments={"x-queue-type": "classic"}))
    management.put(Queue(name="foreign"))
    path = tmp_path / "t.yaml"
    path.write_text("objects:\n  queues:\n    w:\n    new:\n")
    found = unlost(vhost, "plan", str(path))
    assert found.exit_code == 1
    for line in (
        "! w  immutable: needs migrate",
        "'classic' -> 'quorum'",
        "+ new  create",
        "? foreign  unmanaged",
    ):
        assert line in found.stdout
    refused = unlost(vhost, "apply", str(path), "--yes")
    assert (refused.exit_code, "migrate" in refused.stderr) == (2, True)
    assert {each.declared.name for each in management.queues()} == {"w", "foreign"}
    with pytest.raises(DeclarationConflict):
        apply(Topology.load(path), management)


def test_verify_tells_what_is_in_order_and_what_is_not(vhost: Vhost, management: Management) -> None:
    """Everything is fine after an apply; a policy that is overruled and a missing queue are then found."""
    apply(SHOP, management)
    user = httpx.URL(vhost.management_url).username
    looks = {each.what: each for each in verify(SHOP, management, worker=user)}
    expected = {"queue members", "delivery limits", "effective policies", "alarms", "permissions"}
    assert {what for what in expected if looks[what].verdict is Verdict.OK} == expected
    management.put(
        Policy(name="ops", pattern=STOCK, apply_to="queues", definition={"max-length": 1}, priority=999)
    )
    management.delete(Queue(name=naming.unroutable_queue_of("shop")))
    wait_until(
        lambda: (
            {each.what for each in verify(SHOP, management, worker="nobody") if each.verdict is Verdict.FOUND}
            >= {"queue members", "effective policies", "permissions"}
        ),
        PATIENCE,
        "verify finds what is wrong",
    )
    command = unlost(vhost, "verify", "--json", "--module", "tests.integration.test_topology_drift:SHOP")
    assert command.exit_code == 1
    assert len(json.loads(command.stdout)["looks"]) == len(looks)
