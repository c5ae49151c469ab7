"""What is in effect: policies merged as the broker merges them, and not applied where it does not."""

from __future__ import annotations

import pytest

from unlost.topology.effective import Rules, effect_on, merge, settings_of
from unlost.topology.objects import ApplyTo, Exchange, OperatorPolicy, Policy, Queue, Value

QUEUES = {kind: Queue(name="w", arguments={"x-queue-type": kind}) for kind in ("quorum", "classic", "stream")}


def policy(name: str = "p", priority: int = 0, apply_to: ApplyTo = "queues", **settings: Value) -> Policy:
    """Build a policy for w."""
    definition = {key.replace("_", "-"): value for key, value in settings.items()}
    return Policy(name=name, pattern="^w$", apply_to=apply_to, priority=priority, definition=definition)


# Read from `effective_policy_definition` on RabbitMQ 4.3.6, one key at a time.
MERGED = [
    ("message-ttl", 10_000, 20_000, 10_000),
    ("message-ttl", 20_000, 10_000, 10_000),
    ("max-length", 5, 3, 3),
    ("max-length", 3, 5, 3),
    ("max-length-bytes", 700, 900, 700),
    ("expires", 100_000, 90_000, 90_000),
    ("overflow", "reject-publish", "drop-head", "drop-head"),
    ("target-group-size", 3, 5, 5),
    ("target-group-size", 5, 3, 5),
    ("delivery-limit", 7, 3, 3),
    ("delivery-limit", -1, 3, 3),
    ("delivery-limit", 7, -1, 7),
    ("delivery-limit", 3, 7, 3),
    ("max-in-memory-length", 3, 5, 3),
    ("delayed-retry-min", 500, 900, 900),
]


@pytest.mark.parametrize(("key", "user", "operator", "merged"), MERGED)
def test_two_policies_are_merged_as_the_broker_does(
    key: str, user: Value, operator: Value, merged: Value
) -> None:
    """Where both policies set a key, the value is the one that a live broker showed."""
    assert merge({key: user}, {key: operator}) == {key: merged}


def test_keys_of_either_policy_are_kept() -> None:
    """What only one of the two sets is in effect."""
    assert merge({"overflow": "drop-head"}, {"expires": 5}) == {"overflow": "drop-head", "expires": 5}


@pytest.mark.parametrize(
    ("argument", "set_by_policy", "in_effect"), [(20, -1, 20), (20, 50, 20), (20, 5, 5), (-1, 50, 50)]
)
def test_a_delivery_limit_as_argument_cannot_be_lifted(
    argument: int, set_by_policy: int, in_effect: int
) -> None:
    """Of argument and policy the lower limit counts, as a live broker showed."""
    queue = Queue(name="w", arguments={"x-queue-type": "quorum", "x-delivery-limit": argument})
    assert settings_of(queue, {"delivery-limit": set_by_policy})["delivery-limit"] == in_effect


def test_which_side_wins_depends_on_key_and_type() -> None:
    """For overflow the policy wins on a quorum queue, the argument on a classic one; for a DLX always it."""
    for kind, overflow in (("quorum", "reject-publish"), ("classic", "drop-head")):
        arguments = {"x-queue-type": kind, "x-overflow": "drop-head", "x-dead-letter-exchange": "mine"}
        queue = Queue(name="w", arguments=arguments)
        said = settings_of(queue, {"overflow": "reject-publish", "dead-letter-exchange": "other"})
        assert (said["overflow"], said["dead-letter-exchange"]) == (overflow, "mine")


@pytest.mark.parametrize(
    ("key", "kinds"),
    [
        ("max-length", {"quorum", "classic"}),
        ("delivery-limit", {"quorum"}),
        ("dead-letter-strategy", {"quorum"}),
        ("queue-mode", {"classic"}),
        ("max-age", {"stream"}),
        ("max-length-bytes", {"quorum", "classic", "stream"}),
        ("consumer-timeout", {"quorum", "classic", "stream"}),
    ],
)
def test_a_foreign_key_keeps_a_policy_away(key: str, kinds: set[str]) -> None:
    """A policy with a key that a queue type does not know is not in effect on it at all."""
    rule = Policy(name="p", pattern="w", apply_to="queues", definition={key: 1})
    assert {kind for kind, queue in QUEUES.items() if rule.governs(queue)} == kinds


def test_the_next_policy_takes_the_place_of_one_that_does_not_apply() -> None:
    """On a classic queue a policy of lower priority is in effect if the first has a foreign key."""
    first = policy("first", 9, delivery_limit=3)
    second = policy("second", 1, max_length=5)
    found = {
        kind: effect_on(QUEUES[kind], Rules([second, first]), Rules([])).policy
        for kind in ("quorum", "classic")
    }
    assert found == {"quorum": first, "classic": second}


@pytest.mark.parametrize(
    ("apply_to", "governed"),
    [
        ("all", {"quorum", "classic", "exchange"}),
        ("queues", {"quorum", "classic"}),
        ("quorum_queues", {"quorum"}),
        ("classic_queues", {"classic"}),
        ("exchanges", {"exchange"}),
        ("streams", set()),
    ],
)
def test_a_policy_governs_what_it_applies_to(apply_to: ApplyTo, governed: set[str]) -> None:
    """A policy governs objects of the kind, and queues of the type, that it names."""
    rule = policy(apply_to=apply_to, max_length=5)
    candidates: dict[str, Queue | Exchange] = {
        "quorum": QUEUES["quorum"],
        "classic": QUEUES["classic"],
        "exchange": Exchange(name="w"),
    }
    assert {kind for kind, each in candidates.items() if rule.governs(each)} == governed


def test_equal_priorities_are_reported() -> None:
    """Two policies of one priority are a tie; the answer is the same whatever their order."""
    tied = [policy("b", 5, max_length=2), policy("a", 5, max_length=1)]
    for order in (tied, tied[::-1]):
        found = effect_on(QUEUES["quorum"], Rules(order), Rules([]))
        assert (found.tied, found.definition) == (("a", "b"), {"max-length": 1})


def test_a_pattern_that_python_cannot_read_matches_nothing() -> None:
    """A pattern of another dialect is not guessed at."""
    assert not Policy(name="p", pattern="(*", apply_to="all").matches("w")


def test_anchored_names_are_found_like_any_pattern() -> None:
    """Looking a literal pattern up gives what trying it would, also for names full of special characters."""
    name = "a.b+c$[d]"
    rule = OperatorPolicy(name="o", pattern=r"^a\.b\+c\$\[d\]$", apply_to="queues")
    assert Rules([rule]).matching(Queue(name=name)) == [rule]
    assert Rules([rule]).matching(Queue(name="aXb+c$[d]")) == []
