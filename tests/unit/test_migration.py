"""The steps of a migration, without a broker: what they lead to, and that no route is ever missing."""

from __future__ import annotations

import string
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlost.errors import TopologyError
from unlost.topology.migration import Conserved, Count, Do, Facts, Plan, conserved, judge, way_back
from unlost.topology.migration_plan import ExchangeChange, plan_exchange, plan_queue, successor_name
from unlost.topology.objects import Binding, BrokerObject, Exchange, Policy, Queue, Value
from unlost.topology.replacement import QueueChange

DELIVERY = "shop_celery_delayed_delivery"
SOURCE = Queue(name="shop.pay")
BY_NAME = Binding(source="shop", destination="shop.pay", routing_key="shop.pay")
BY_EVENT = Binding(source="shop", destination="shop.pay", routing_key="order.placed")
DELAYED = Binding(source=DELIVERY, destination="shop.pay", routing_key="#.q:shop.pay")
CHANGE = QueueChange(source="shop.pay", target="shop.pay.v2")


def facts(*objects: BrokerObject, version: tuple[int, int] = (4, 3)) -> Facts:
    """Return the facts of a vhost with one queue and these objects."""
    return Facts(version=version, objects=(Exchange(name="shop"), Exchange(name=DELIVERY), SOURCE, *objects))


def routes(state: Facts, queue: str) -> set[tuple[str, str]]:
    """Return by which exchange and key a queue can be reached."""
    return {(each.source, each.routing_key) for each in state.bindings if each.destination == queue}


def definition(plan: Plan) -> dict[str, Value]:
    """Return what the plan's policy says."""
    [policy] = [step.object for step in plan.steps if step.do is Do.PUT_POLICY]
    assert isinstance(policy, Policy)
    return dict(policy.definition)


def built(plan: Plan) -> Queue:
    """Return the queue that the plan creates first."""
    queue = next(step.object for step in plan.steps if step.do is Do.CREATE)
    assert isinstance(queue, Queue)
    return queue


def test_every_route_of_the_old_queue_leads_to_the_new_one() -> None:
    """In the end the new queue is reached by every old route and by its own name, also delayed."""
    before = facts(BY_NAME, BY_EVENT, DELAYED)
    after = before.after(plan_queue(CHANGE, before).steps)
    assert after.queue("shop.pay") is None
    assert routes(after, "shop.pay.v2") == {
        ("shop", "shop.pay"),
        ("shop", "order.placed"),
        (DELIVERY, "#.q:shop.pay"),
        ("shop", "shop.pay.v2"),
        (DELIVERY, "#.q:shop.pay.v2"),
    }


def test_retiring_leaves_no_route_by_the_old_name() -> None:
    """The old name's routes go once no delayed message is addressed to it; other routes stay."""
    before = facts(BY_NAME, BY_EVENT, DELAYED)
    plan = plan_queue(replace(CHANGE, retire=True), before)
    assert routes(before.after(plan.steps), "shop.pay.v2") == {
        ("shop", "order.placed"),
        ("shop", "shop.pay.v2"),
        (DELIVERY, "#.q:shop.pay.v2"),
    }
    done = [step.do for step in plan.steps]
    waits = [step.other for step in plan.steps if step.do is Do.AWAIT_DELAYED]
    assert waits == ["shop"]
    retired = max(i for i, step in enumerate(plan.steps) if step.do is Do.UNBIND)
    assert done.index(Do.DRAIN) < done.index(Do.AWAIT_DELAYED) < retired < len(done) - 1


def test_rebuilding_keeps_the_name() -> None:
    """Two hops end with a quorum queue of the old name, its old routes, and nothing else."""
    before = facts(BY_NAME, DELAYED)
    plan = plan_queue(QueueChange(source="shop.pay", target="shop.pay"), before)
    after = before.after(plan.steps)
    rebuilt = after.queue("shop.pay")
    assert rebuilt is not None
    assert rebuilt.arguments["x-queue-type"] == "quorum"
    assert routes(after, "shop.pay") == {("shop", "shop.pay"), (DELIVERY, "#.q:shop.pay")}
    assert after.queue("shop.pay.moving") is None
    assert [step.do for step in plan.steps[plan.last :]] == [Do.AWAIT_RELEASE, Do.DELETE]


keys = st.text(string.ascii_lowercase, min_size=1, max_size=3)
bindings = st.lists(
    st.builds(
        Binding,
        source=st.sampled_from(["shop", DELIVERY]),
        destination=st.sampled_from(["shop.pay", "other", "shop.pay.v2"]),
        routing_key=st.one_of(keys, st.sampled_from(["shop.pay", "#.q:shop.pay", "a.*.b"])),
    ),
    max_size=8,
    unique_by=lambda each: each.key,
)
OTHERS = (Queue(name="other"), Queue(name="shop.pay.v2", arguments={"x-queue-type": "quorum"}))
changes = st.builds(
    QueueChange,
    source=st.just("shop.pay"),
    target=st.sampled_from(["shop.pay.v2", "new", "shop.pay"]),
    retire=st.just(False),
)


@given(bindings, changes)
def test_a_route_always_leads_somewhere(found: list[Binding], change: QueueChange) -> None:
    """After each step, what could be published before can be published still, and not into a dead end."""
    before = facts(*OTHERS, *found)
    plan = plan_queue(change, before)
    ours = {"shop.pay", *(new for _, new in plan.hops)}
    wanted = routes(before, "shop.pay")
    for taken in range(len(plan.steps) + 1):
        state = before.after(plan.steps[:taken])
        assert wanted <= set().union(*(routes(state, queue) for queue in ours))
        assert all(state.queue(each.destination) for each in state.bindings)


@given(bindings, changes)
def test_nothing_is_deleted_before_it_was_emptied(found: list[Binding], change: QueueChange) -> None:
    """When a queue's messages are moved for the last time, no route leads to it."""
    before = facts(*OTHERS, *found)
    plan = plan_queue(change, before)
    for index, step in enumerate(plan.steps):
        if step.do in (Do.DRAIN, Do.DELETE):
            assert routes(before.after(plan.steps[:index]), step.object.key) == set()


@given(bindings, changes, st.data())
def test_the_way_back_leads_back(found: list[Binding], change: QueueChange, data: st.DataObject) -> None:
    """From after any step but the last, the way back leaves what was there; no route is ever missing."""
    before = facts(*OTHERS, *found)
    plan = plan_queue(change, before)
    begun = data.draw(st.integers(0, len(plan.steps) - 1))
    state = before.after(plan.steps[:begun])
    back = way_back(plan, begun)
    ours = {"shop.pay", *(new for _, new in plan.hops)}
    for taken in range(len(back) + 1):
        during = state.after(back[:taken])
        assert routes(before, "shop.pay") <= set().union(*(routes(during, queue) for queue in ours))
    assert set(map(repr, state.after(back).objects)) == set(map(repr, before.objects))


@given(bindings, changes, st.data())
def test_what_the_new_queue_may_hold_is_moved_back(
    found: list[Binding], change: QueueChange, data: st.DataObject
) -> None:
    """A queue that was made and bound is emptied on the way back before it is deleted."""
    before = facts(*OTHERS, *found)
    plan = plan_queue(change, before)
    begun = data.draw(st.integers(0, len(plan.steps) - 1))
    taken = [step.object for step in plan.steps[:begun] if step.do is Do.BIND]
    bound = {each.destination for each in taken if isinstance(each, Binding)}
    back = way_back(plan, begun)
    for index, step in enumerate(back):
        if step.do is Do.DELETE and step.object.key in bound:
            emptied = [s.object.key for s in back[:index] if s.do is Do.DRAIN]
            assert step.object.key in emptied


def test_there_is_no_way_back_from_the_deletion() -> None:
    """Once the last step has begun, the way back is refused and the way out named."""
    plan = plan_queue(CHANGE, facts(BY_NAME))
    with pytest.raises(TopologyError, match=r"migrate 'shop.pay.v2' to 'shop.pay'"):
        way_back(plan, len(plan.steps))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {"delivery-limit": -1}),
        ({"x-max-priority": 10, "x-queue-mode": "lazy", "x-expires": 1000}, {"delivery-limit": -1}),
        ({"x-max-length": 5}, {"max-length": 5, "overflow": "reject-publish", "delivery-limit": -1}),
        (
            {"x-dead-letter-exchange": "dlx"},
            {
                "dead-letter-exchange": "dlx",
                "dead-letter-routing-key": "shop.pay",
                "dead-letter-strategy": "at-least-once",
                "overflow": "reject-publish",
                "delivery-limit": -1,
            },
        ),
        ({"x-delivery-limit": 7}, {"delivery-limit": 7}),
    ],
)
def test_a_quorum_queue_loses_nothing_a_classic_one_kept(
    arguments: dict[str, Value], expected: dict[str, Value]
) -> None:
    """Settings become a policy; what the type lacks is left out; nothing drops messages any more."""
    before = Facts(version=(4, 3), objects=(replace(SOURCE, arguments=arguments), BY_NAME))
    plan = plan_queue(CHANGE, before)
    assert definition(plan) == expected
    assert built(plan).arguments == {"x-queue-type": "quorum"}


def test_the_policy_of_the_old_queue_is_carried_over() -> None:
    """What a policy said of the old queue, an anchored one says of the new queue, above any other."""
    wide = Policy(name="all", pattern=".*", apply_to="queues", definition={"max-length": 9}, priority=500)
    plan = plan_queue(CHANGE, facts(BY_NAME, wide))
    [policy] = [step.object for step in plan.steps if step.do is Do.PUT_POLICY]
    assert isinstance(policy, Policy)
    assert policy.definition["max-length"] == 9
    assert policy.priority > 500
    assert policy.governs(Queue(name="shop.pay.v2", arguments={"x-queue-type": "quorum"}))
    assert not policy.governs(Queue(name="shop.pay.v2.dlq"))


def test_no_policy_is_made_where_one_says_the_same() -> None:
    """A policy that already says all that is wanted is left to govern the new queue, too."""
    wide = Policy(name="all", pattern=".*", apply_to="queues", definition={"delivery-limit": -1})
    assert Do.PUT_POLICY not in [step.do for step in plan_queue(CHANGE, facts(wide)).steps]


@pytest.mark.parametrize(
    ("objects", "change", "reason"),
    [
        ((), replace(CHANGE, source="shop.pya"), "there is no queue 'shop.pya'"),
        ((replace(SOURCE, name="gone", auto_delete=True),), replace(CHANGE, source="gone"), "auto-delete"),
        (
            (Queue(name="log", arguments={"x-queue-type": "stream"}),),
            replace(CHANGE, source="log"),
            "is a stream",
        ),
        ((Queue(name="shop.pay.v2"),), CHANGE, "exists and is a classic queue, not quorum"),
        (
            (Queue(name="shop.pay.v2", arguments={"x-queue-type": "quorum", "x-max-length": 5}),),
            CHANGE,
            "drops its oldest message",
        ),
        (
            (
                Queue(name="l", arguments={"x-dead-letter-exchange": "dlx"}),
                Binding(source="shop", destination="l", routing_key="a"),
                Binding(source="shop", destination="l", routing_key="b"),
            ),
            replace(CHANGE, source="l"),
            "set a dead-letter-routing-key",
        ),
        ((), replace(CHANGE, target="a.q:b"), "has a word that begins with 'q:'"),
    ],
)
def test_what_would_lose_messages_is_refused(
    objects: tuple[BrokerObject, ...], change: QueueChange, reason: str
) -> None:
    """A change that cannot be carried out without loss is refused with its reason."""
    with pytest.raises(TopologyError, match=reason):
        plan_queue(change, facts(*objects))


def test_an_exchange_keeps_all_its_routes() -> None:
    """Until the last step both exchanges route alike; then only the new one is left."""
    direct = Exchange(name="celery", type="direct")
    incoming = Binding(source="shop", destination="celery", destination_type="exchange", routing_key="x")
    found = facts(direct, Binding(source="celery", destination="shop.pay", routing_key="pay"), incoming)
    plan = plan_exchange(ExchangeChange(source="celery", target="celery.topic"), found)
    assert [str(step) for step in plan.steps] == [
        "create exchange celery.topic",
        "bind celery.topic -> shop.pay [pay]",
        "bind shop => celery.topic [x]",
        "delete exchange celery",
    ]
    assert plan.last == 3
    back = way_back(plan, 3)
    assert set(map(repr, found.after(plan.steps[:3]).after(back).objects)) == set(map(repr, found.objects))


@pytest.mark.parametrize(("kind", "key"), [("direct", "a.*"), ("fanout", "")])
def test_routes_that_would_mean_something_else_are_refused(kind: str, key: str) -> None:
    """A key that would become a pattern, or a type that ignores keys, is not taken over."""
    found = facts(Exchange(name="x", type=kind), Binding(source="x", destination="shop.pay", routing_key=key))
    with pytest.raises(TopologyError):
        plan_exchange(ExchangeChange(source="x", target="y"), found)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (Count(source=5, target=1, consumers=0), Count(source=0, target=6, consumers=0), Conserved.YES),
        (Count(source=5, target=1, consumers=0), Count(source=0, target=9, consumers=0), Conserved.YES),
        (Count(source=5, target=1, consumers=0), Count(source=0, target=5, consumers=0), Conserved.NO),
        (Count(source=5, target=1, consumers=0), Count(source=0, target=5, consumers=1), Conserved.UNKNOWN),
        (
            Count(source=5, target=1, consumers=0, transient=True),
            Count(source=0, target=0, consumers=0),
            Conserved.UNKNOWN,
        ),
    ],
)
def test_totals_are_compared_where_they_prove_something(
    before: Count, after: Count, verdict: Conserved
) -> None:
    """A loss shows in the totals unless others consume or a TTL drops; more than expected is no loss."""
    assert conserved(before, after) is verdict


GONE = Count(source=0, target=0, consumers=0)
MOVED = Count(source=0, target=10, consumers=0)
WATCHED = Count(source=0, target=10, consumers=1)


@pytest.mark.parametrize(
    ("looks", "verdict"),
    [
        ([WATCHED, MOVED], Conserved.YES),
        ([GONE, MOVED], Conserved.YES),
        ([WATCHED, GONE], Conserved.NO),
        ([GONE, GONE], Conserved.NO),
        ([GONE, WATCHED], Conserved.UNKNOWN),
    ],
)
def test_totals_are_looked_at_again_until_they_show_all(looks: list[Count], verdict: Conserved) -> None:
    """A consumer that has gone, and a queue counted as empty, are believed only when they stay."""
    assert judge(Count(source=10, target=0, consumers=0), looks) is verdict


def test_where_others_consume_from_the_start_one_look_is_enough() -> None:
    """What can prove nothing is not looked at again."""
    looks = iter([WATCHED, MOVED])
    assert judge(Count(source=10, target=0, consumers=1), looks) is Conserved.UNKNOWN
    assert next(looks) is MOVED


def test_the_default_name_counts_up() -> None:
    """The successor's default name is the next version of the old one."""
    assert [successor_name(name) for name in ("q", "q.v2", "q.v", "a.vb")] == [
        "q.v2",
        "q.v3",
        "q.v.v2",
        "a.vb.v2",
    ]
