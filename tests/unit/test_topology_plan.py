"""Plans: empty for what is there, ordered for what is not, refused for what cannot be changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlost.errors import DeclarationConflict, TopologyError
from unlost.topology import naming
from unlost.topology.expand import Expanded, expand
from unlost.topology.model import Delay, Topology, WorkQueue
from unlost.topology.objects import Binding, BrokerObject, Exchange, Policy, Queue
from unlost.topology.plan import Action, Step, plan, refuse_other_levels


def shop(levels: int = 4) -> Topology:
    """Build a topology of two queues."""
    return Topology(
        name="shop",
        queues={"shop.stock": WorkQueue(), "shop.receipts": WorkQueue()},
        delay=Delay(levels=levels),
    )


EXPANDED: Expanded = expand(shop(), (4, 3))


def without(*kinds_and_keys: tuple[str, str]) -> list[BrokerObject]:
    """Return all objects of the shop but some."""
    return [each for each in EXPANDED.objects if (each.kind, each.key) not in kinds_and_keys]


def test_nothing_is_to_do_when_all_is_there() -> None:
    """What is present as needed takes no step."""
    assert plan(EXPANDED, EXPANDED.objects).steps == ()


def test_an_empty_broker_gets_everything_in_order() -> None:
    """On an empty broker the plan is to create every object in its safe order."""
    assert [step.object for step in plan(EXPANDED, []).steps] == list(EXPANDED.objects)


@settings(deadline=None)  # a loaded machine is no failure
@given(st.sets(st.sampled_from(range(len(EXPANDED.objects)))))
def test_taking_the_steps_leaves_none(missing: set[int]) -> None:
    """Whatever part is missing, after the steps of the plan there is nothing to do."""
    present = [each for index, each in enumerate(EXPANDED.objects) if index not in missing]
    steps = plan(EXPANDED, present).steps
    assert [step.object for step in steps] == [EXPANDED.objects[index] for index in sorted(missing)]
    assert plan(EXPANDED, [*present, *(step.object for step in steps)]).steps == ()


def test_a_policy_that_differs_is_updated() -> None:
    """A policy is the one thing that can be changed in place."""
    (wanted,) = (p for p in EXPANDED.policies if p.name == naming.queue_policy_of("shop.stock"))
    present = [*without(("policy", wanted.key)), replace(wanted, definition={"max-length": 10})]
    (step,) = plan(EXPANDED, present).steps
    assert (step.action, step.object) == (Action.UPDATE, wanted)
    assert "definition.max-length: 10 -> not set" in step.reasons


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Queue(name="shop.stock", arguments={"x-queue-type": "classic"}), "'quorum'.*'classic'.*drain"),
        (Queue(name="shop.stock", durable=False), "durable is True in the topology but False"),
        (Exchange(name="shop", type="direct"), "type is 'topic' in the topology but 'direct'"),
        (Exchange(name="shop", arguments={"alternate-exchange": "x"}), "alternate-exchange"),
    ],
)
def test_what_cannot_be_changed_is_a_conflict(found: Exchange | Queue, message: str) -> None:
    """An exchange or queue of other properties is refused, with both sides and the way out."""
    present = [*without((found.kind, found.key)), found]
    with pytest.raises(DeclarationConflict, match=message):
        plan(EXPANDED, present).refuse_immutable()


def test_all_conflicts_are_reported_at_once() -> None:
    """A plan names every conflict, not only the first."""
    with pytest.raises(DeclarationConflict, match=r"shop\.stock.*shop\.receipts"):
        plan(EXPANDED, [Queue(name="shop.stock"), Queue(name="shop.receipts")]).refuse_immutable()


def test_what_is_not_ours_is_left_alone() -> None:
    """Objects that the topology does not declare take no step."""
    foreign: list[BrokerObject] = [
        Queue(name="other"),
        Exchange(name="other"),
        Policy(name="other", pattern=".*", apply_to="queues"),
        Binding(source="shop", destination="other"),
    ]
    found = plan(EXPANDED, [*EXPANDED.objects, *foreign])
    assert (found.drift, found.allowed(unbind=True, destroy=True)) == ((), ())
    assert [step.object for step in found.of(Action.UNMANAGED)] == foreign


@pytest.mark.parametrize(("before", "after"), [(28, 4), (4, 28), (4, 5)])
def test_a_delay_path_of_other_length_is_refused(before: int, after: int) -> None:
    """Bindings of two lengths side by side would deliver twice, so another number of levels is refused."""
    present = expand(shop(before), (4, 3)).objects
    needed = expand(shop(after), (4, 3))
    with pytest.raises(TopologyError, match=r"delay\.levels"):
        refuse_other_levels(shop(after), needed, present)


def test_a_delay_path_of_the_same_length_is_accepted() -> None:
    """The path as it is declared is no reason to refuse, nor are other queues at its end."""
    delivery = naming.delay_delivery_exchange("shop")
    other = Binding(source=delivery, destination="former", routing_key="#.q:former")
    refuse_other_levels(shop(), EXPANDED, [*EXPANDED.objects, other])


def test_a_step_reads_as_a_sentence() -> None:
    """A step says what it does to which object."""
    step = Step(Action.CREATE, Binding(source="a", destination="b", routing_key="c"))
    assert str(step) == "create binding a -> b [c]"
