"""Three-way plans: classes of change, what they cost, what overrules them, and the laws that they keep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.topologies import full_topologies
from unlost.topology.expand import Expanded, expand
from unlost.topology.model import Topology
from unlost.topology.objects import (
    Binding,
    BrokerObject,
    Exchange,
    OperatorPolicy,
    Policy,
    Queue,
    User,
    Value,
    differences,
    identity,
    same,
)
from unlost.topology.passwords import hash_password
from unlost.topology.plan import Action, Live, Plan, plan

LETTERS: dict[str, Value] = {
    "dead-letter-exchange": "dlx",
    "dead-letter-strategy": "at-least-once",
    "overflow": "reject-publish",
}
W = Queue(name="w", arguments={"x-queue-type": "quorum"})


def policy(name: str = "p", priority: int = 5, **settings: Value) -> Policy:
    """Build a policy for w."""
    definition = {key.replace("_", "-"): value for key, value in settings.items()}
    return Policy(name=name, pattern="^w$", apply_to="queues", priority=priority, definition=definition)


def planned(declared: list[BrokerObject], live: list[BrokerObject], owns: tuple[str, ...] = ()) -> Plan:
    """Plan from what is live to what is declared."""
    return plan(Expanded(tuple(declared), owns), live)


def taken(found: Plan, live: tuple[BrokerObject, ...]) -> tuple[BrokerObject, ...]:
    """Return what is live after a plan was carried out in full."""
    there = {identity(each): each for each in live}
    for step in found.allowed(unbind=True, destroy=True):
        if step.deletes:
            there.pop(identity(step.object), None)
        else:
            there[identity(step.object)] = step.object
    return tuple(there.values())


@settings(deadline=None, max_examples=40)
@given(full_topologies())
def test_what_is_as_declared_takes_no_step(topology: Topology) -> None:
    """``plan(a, a)`` has nothing to do; only a tie between its own policies may be told."""
    expanded = expand(topology, (4, 3))
    found = plan(expanded, expanded.objects)
    assert found.allowed(unbind=True, destroy=True) == ()
    assert {step.action for step in found.steps} <= {Action.OVERRULED}
    assert found.unchanged == len(expanded.objects)


@settings(deadline=None, max_examples=40)
@given(full_topologies(), full_topologies())
def test_after_the_steps_there_is_nothing_to_do(before: Topology, after: Topology) -> None:
    """Whatever was there, when every step was taken no further one is left but what nobody can change."""
    live, declared = expand(before, (4, 3)).objects, expand(after, (4, 3))
    first = plan(declared, live)
    again = plan(declared, taken(first, live))
    assert again.allowed(unbind=True, destroy=True) == ()
    assert {identity(step.object) for step in again.of(Action.IMMUTABLE)} == {
        identity(step.object) for step in first.of(Action.IMMUTABLE)
    }


@settings(deadline=None, max_examples=40)
@given(full_topologies(), full_topologies())
def test_equality_is_symmetric(one: Topology, other: Topology) -> None:
    """Two objects of one identity are the same or not, whichever is asked first."""
    theirs = {identity(each): each for each in expand(other, (4, 3)).objects}
    for each in expand(one, (4, 3)).objects:
        found = theirs.get(identity(each))
        if found is not None:
            assert same(each, found) is same(found, each)
            assert len(differences(each, found)) == len(differences(found, each))
        assert same(each, each)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (Queue(name="w"), Queue(name="w", arguments={"x-queue-type": "classic"}), True),
        (Queue(name="w"), Queue(name="w", arguments={"x-queue-type": "quorum"}), False),
        (W, replace(W, arguments={**W.arguments, "x-own": 1}), False),
        (policy(max_length=1), policy(max_length=True), False),
        (policy(max_length=1), policy(max_length=1, priority=6), False),
        (User(name="u", tags=("a", "b")), User(name="u", tags=("b", "a")), True),
        (User(name="u", password="p"), User(name="u", password_hash=hash_password("p", b"salt")), True),
        (User(name="u", password="q"), User(name="u", password_hash=hash_password("p", b"salt")), False),
        (User(name="u"), User(name="u", password_hash=hash_password("p", b"salt")), True),
    ],
)
def test_objects_are_compared_as_the_broker_would(one: Any, other: Any, equal: bool) -> None:
    """A type that is not named is classic, 1 is not true, tags have no order, a password fits its hash."""
    assert same(one, other) is equal
    assert same(other, one) is equal


def test_a_binding_that_nobody_declared_is_an_unbind() -> None:
    """A binding between two declared objects needs a flag, and comes after what is added."""
    exchange, kept = Exchange(name="e"), Binding(source="e", destination="w", routing_key="new")
    stale = Binding(source="e", destination="w", routing_key="old")
    found = planned([exchange, W, kept], [exchange, W, stale])
    assert [(step.action, step.object) for step in found.steps] == [
        (Action.CREATE, kept),
        (Action.UNBIND, stale),
    ]
    assert found.allowed() == found.steps[:1]
    assert found.allowed(unbind=True) == found.steps
    assert found.withheld() == found.steps[1:]


def test_a_binding_to_what_is_not_ours_is_unmanaged() -> None:
    """A tap that somebody put on a declared exchange is told, and no drift."""
    tap = Binding(source="e", destination="tap")
    found = planned([Exchange(name="e")], [Exchange(name="e"), Queue(name="tap"), tap])
    assert {step.action for step in found.steps} == {Action.UNMANAGED}
    assert found.drift == ()


def test_what_is_owned_and_not_declared_is_deleted_with_a_flag() -> None:
    """``owns`` makes what is there and not declared destructive; a whole name must match."""
    live: list[BrokerObject] = [Queue(name="shop.old"), Queue(name="workshop.old"), policy("shop.p")]
    found = planned([], live, owns=("shop[.].*",))
    destroyed = found.of(Action.DESTRUCTIVE)
    assert [(step.object.key, step.deletes) for step in destroyed] == [("shop.old", True), ("shop.p", True)]
    assert destroyed[0].risks[0].loss == "the queue is deleted with everything in it"
    assert found.allowed() == ()


@pytest.mark.parametrize(
    ("before", "after", "loss"),
    [
        (LETTERS, {**LETTERS, "overflow": "drop-head"}, "leaves at-least-once"),
        (LETTERS, {"overflow": "reject-publish"}, "loses its dead-letter exchange"),
        ({"overflow": "drop-head"}, {"expires": 1000}, "expires when unused"),
        ({"expires": 2000}, {"expires": 1000}, "expires when unused"),
        ({}, {"message-ttl": 1000}, "messages expire"),
        ({}, {"max-length": 5}, "max-length drops the oldest"),
        ({"max-length": 9}, {"max-length": 5}, "max-length drops the oldest"),
        ({"delivery-limit": -1}, {"delivery-limit": 5}, "over the delivery limit"),
    ],
)
def test_a_policy_change_that_costs_messages_is_destructive(
    before: dict[str, Value], after: dict[str, Value], loss: str
) -> None:
    """A change of settings that loses messages of an existing queue needs a flag, and says how."""
    ours = policy()
    found = planned([W, replace(ours, definition=after)], [W, replace(ours, definition=before)])
    (step,) = found.steps
    assert step.action is Action.DESTRUCTIVE
    assert not step.deletes
    assert [(risk.queue, loss in risk.loss) for risk in step.risks] == [("w", True)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"overflow": "drop-head"}, LETTERS),
        (LETTERS, {**LETTERS, "message-ttl": 1000}),
        (LETTERS, {**LETTERS, "max-length": 5}),
        ({}, {"max-length": 5, "overflow": "reject-publish"}),
        ({"max-length": 5}, {"max-length": 9}),
        ({"expires": 1000}, {"expires": 2000}),
        ({"delivery-limit": 5}, {"delivery-limit": -1}),
        ({"message-ttl": 1000}, {"overflow": "drop-head"}),
    ],
)
def test_a_policy_change_that_costs_nothing_is_in_place(
    before: dict[str, Value], after: dict[str, Value]
) -> None:
    """A change that loses nothing needs no flag."""
    ours = policy()
    found = planned([W, replace(ours, definition=after)], [W, replace(ours, definition=before)])
    assert [step.action for step in found.steps] == [Action.UPDATE]


def test_a_new_policy_that_takes_a_safe_ones_place_is_destructive() -> None:
    """Not the policy alone counts, but what is in effect: one of higher priority takes the DLX away."""
    safe = Policy(name="safe", pattern="^w$", apply_to="queues", definition=LETTERS)
    found = planned([W, safe, policy(max_length_bytes=1)], [W, safe])
    (step,) = found.steps
    assert (step.action, step.object.key) == (Action.DESTRUCTIVE, "p")
    assert "dead-letter exchange" in step.risks[0].loss


def test_a_policy_of_somebody_else_overrules() -> None:
    """A live policy of higher priority is told with name and priority; apply cannot help."""
    ours, theirs = policy(overflow="reject-publish"), policy("ops", 99, max_length=1)
    found = planned([W, ours], [W, ours, theirs])
    (step,) = found.of(Action.OVERRULED)
    assert "'ops' of priority 99 instead of 'p'" in step.reasons[0]
    assert found.allowed(unbind=True, destroy=True) == ()
    assert found.drift == (step,)


@pytest.mark.parametrize(
    ("guard", "told"),
    [
        ({"max-length": 3}, True),
        ({"max-length": 300}, False),
        ({"max-length-bytes": 9}, False),
        ({"message-ttl": 5}, True),
        ({"delivery-limit": 5}, True),
        ({"delivery-limit": -1}, False),
    ],
)
def test_a_guard_rail_that_changes_what_is_declared_is_told(guard: dict[str, Value], told: bool) -> None:
    """An operator policy overrules if the merged value differs from the declared one, or costs messages."""
    ours = policy(max_length=9)
    rule = OperatorPolicy(name="o", pattern="^w$", apply_to="queues", definition=guard)
    assert bool(planned([W, ours], [W, ours, rule]).of(Action.OVERRULED)) is told


def test_a_policy_on_an_exchange_that_is_declared_without_one() -> None:
    """An alternate exchange that a foreign policy sets is told, for it silences mandatory; others are not."""
    exchange = Exchange(name="w")
    for definition, told in (({"alternate-exchange": "x"}, True), ({"federation-upstream": "u"}, False)):
        foreign = Policy(name="f", pattern="w", apply_to="exchanges", definition=definition)
        assert bool(planned([exchange], [exchange, foreign]).of(Action.OVERRULED)) is told


def test_what_could_not_be_read_is_not_guessed() -> None:
    """Of a kind that could not be read nothing is said; the plan names the kind and the reason."""
    user = User(name="u")
    found = plan(Expanded((user, W)), Live((W,), {"user": "refused"}))
    assert (found.steps, found.unchanged, found.unread) == ((), 1, {"user": "refused"})


def test_every_step_says_why() -> None:
    """Each step of a plan has a reason."""
    live: list[BrokerObject] = [
        Queue(name="w"),
        Exchange(name="e"),
        Exchange(name="shop.x"),
        policy("foreign", 99),
    ]
    declared: list[BrokerObject] = [W, Exchange(name="e"), policy(max_length=1)]
    for step in planned(declared, live, owns=("shop[.].*",)).steps:
        assert step.reasons


@settings(deadline=None, max_examples=40)
@given(full_topologies(), full_topologies(), st.booleans())
def test_routes_are_added_before_others_are_taken_away(before: Topology, after: Topology, owns: bool) -> None:
    """In no plan does a deletion come before a creation, or a queue's deletion before an unbind."""
    declared = expand(after, (4, 3))
    found = plan(Expanded(declared.objects, (".*",) if owns else ()), expand(before, (4, 3)).objects)
    ranks = {"binding": 1, "exchange": 2, "queue": 3, "policy": 4}
    order = [
        ranks[step.object.kind] if step.deletes else 0 for step in found.allowed(unbind=True, destroy=True)
    ]
    assert order == sorted(order)
