"""``lint``: every rule is triggered by a bad example and silent on its near miss."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_topology_expand import VERSIONS, topologies
from unlost.topology.lint import RULES, World, lint, lint_world
from unlost.topology.model import Topology, WorkQueue
from unlost.topology.objects import Binding, BrokerObject, Queue

CATALOGUE = Path(__file__).parents[2] / "docs" / "topology.md"
LETTERS: dict[str, Any] = {
    "exchanges": {"dlx": {"type": "fanout"}},
    "queues": {"letters": {}},
    "bindings": [{"source": "dlx", "destination": "letters"}],
    "policies": {"letters": {"pattern": "^letters$", "definition": {"delivery-limit": -1}}},
}
SAFE = {
    "dead-letter-exchange": "dlx",
    "dead-letter-routing-key": "w",
    "dead-letter-strategy": "at-least-once",
    "overflow": "reject-publish",
    "delivery-limit": -1,
}


def objects(
    queues: dict[str, Any] | None = None,
    policies: dict[str, Any] | None = None,
    exchanges: dict[str, Any] | None = None,
    bindings: list[dict[str, Any]] | None = None,
    **more: Any,
) -> Topology:
    """Build a topology of single objects around a safe dead-letter queue."""
    return Topology.model_validate(
        {
            "objects": {
                "exchanges": {**LETTERS["exchanges"], **(exchanges or {})},
                "queues": {**LETTERS["queues"], **(queues or {})},
                "bindings": [*LETTERS["bindings"], *(bindings or [])],
                "policies": {**LETTERS["policies"], **(policies or {})},
                **more,
            }
        }
    )


def governed(queue: dict[str, Any] | None = None, without: str = "", **definition: Any) -> Topology:
    """Build a quorum queue ``w`` under a safe policy, changed."""
    said = {**SAFE, **{key.replace("_", "-"): value for key, value in definition.items()}}
    said.pop(without, None)
    return objects({"w": queue or {}}, {"w": {"pattern": "^w$", "definition": said}})


def shop(queue: WorkQueue | None = None, **extra: Any) -> Topology:
    """Build an application of one work queue, and objects beside it."""
    return Topology(
        name="shop",
        queues={"shop.stock": queue or WorkQueue()},
        objects=Topology.model_validate({"objects": extra}).objects,
    )


def bound(key: str, **more: Any) -> list[dict[str, Any]]:
    """Bind queue w to a topic exchange."""
    return [{"source": "e", "destination": "w", "routing_key": key, **more}]


def topic(key: str, **exchange: Any) -> Topology:
    """Build queues w and v behind a topic exchange, v with a plain key."""
    policy = {"w": {"pattern": "^[wv]$", "definition": SAFE}}
    bindings = [*bound(key), {"source": "e", "destination": "v", "routing_key": "a.v"}]
    return objects({"w": {}, "v": {}}, policy, {"e": exchange}, bindings)


def delayed(name: str, **definition: Any) -> Topology:
    """Bind a queue to the end of a delay path."""
    said = {**SAFE, **{key.replace("_", "-"): value for key, value in definition.items()}}
    return objects(
        {name: {}},
        {"w": {"pattern": f"^{re.escape(name)}$", "definition": said}},
        {"x_delayed_delivery": {"alternate_exchange": "dlx"}},
        [{"source": "x_delayed_delivery", "destination": name, "routing_key": f"#.q:{name}"}],
    )


def keyed_dlx(**definition: Any) -> Topology:
    """Build queue w with a topic exchange as its DLX."""
    said = {**SAFE, "dead-letter-exchange": "tdlx", **definition}
    return objects(
        {"w": {}},
        {"w": {"pattern": "^w$", "definition": {k: v for k, v in said.items() if v is not None}}},
        {"tdlx": {}},
        [{"source": "tdlx", "destination": "letters", "routing_key": "w"}],
    )


def two_policies(second: int) -> Topology:
    """Build queue w under two policies, the second of a given priority."""
    policy = {"pattern": "^w$", "definition": SAFE, "priority": 5}
    return objects({"w": {}}, {"a": policy, "b": {**policy, "priority": second}})


def alternate(name: str, **more: Any) -> Topology:
    """Give an exchange an alternate exchange."""
    return objects(exchanges={name: {"alternate_exchange": "dlx"}}, **more)


class Row(NamedTuple):
    """A rule, what triggers it, and what is close to that and fine."""

    rule: str
    bad: Topology | list[BrokerObject]
    near_miss: Topology | list[BrokerObject]
    version: tuple[int, int] = (4, 3)
    near_version: tuple[int, int] = (4, 3)
    options: Mapping[str, Any] = MappingProxyType({})
    near_options: Mapping[str, Any] = MappingProxyType({})


HOUR = timedelta(hours=1)
QUORUM = {"x-queue-type": "quorum"}
W = {"w": {"pattern": "^w$", "definition": SAFE}}


def letters(queue: dict[str, Any] | None = None, **definition: Any) -> Topology:
    """Build a safe queue w whose dead-letter queue is changed."""
    said = {key.replace("_", "-"): value for key, value in definition.items()} or {"delivery-limit": -1}
    policy = {"pattern": "^letters$", "definition": said}
    return objects({"w": {}, "letters": queue or {}}, {**W, "letters": policy})


def old(**definition: Any) -> Topology:
    """Build a queue under a policy, and nothing that an old broker would refuse."""
    said = {key.replace("_", "-"): value for key, value in definition.items()}
    policy = {"pattern": "^letters$", "definition": {"overflow": "reject-publish"}}
    w = {"pattern": "^w$", "definition": {"overflow": "reject-publish", **said}}
    return objects({"w": {"type": "classic"}}, {"w": w, "letters": policy})


ROWS = [
    Row("quorum-without-dlx", objects({"w": {}}), governed()),
    Row(
        "quorum-without-dlx",
        governed(without="dead-letter-exchange"),
        objects({"w": {}, "c": {"type": "classic"}}, W),
    ),
    Row("dlx-without-queue", governed(dead_letter_exchange="nowhere"), governed()),
    Row("dlx-without-queue", keyed_dlx(**{"dead-letter-routing-key": "v"}), keyed_dlx()),
    Row(
        "dlx-without-queue",
        governed(dead_letter_exchange="", dead_letter_routing_key="v"),
        governed(dead_letter_exchange="amq.fanout"),
    ),
    Row("at-least-once-fallback", governed(overflow="drop-head"), governed()),
    Row("at-least-once-fallback", governed(without="overflow"), governed(without="dead-letter-strategy")),
    Row("letters-at-most-once", governed(without="dead-letter-strategy"), governed()),
    Row("letters-limited", letters({"message_ttl": "PT1H"}), letters()),
    Row("letters-limited", letters(delivery_limit=-1, max_length=5), letters(delivery_limit=-1)),
    Row("letters-limited", letters(delivery_limit=100), letters(overflow="reject-publish"), (4, 0), (3, 10)),
    Row("letters-limited", letters(overflow="reject-publish"), letters(), (4, 0)),
    Row("letter-key-missing", keyed_dlx(**{"dead-letter-routing-key": None}), keyed_dlx()),
    Row(
        "letter-key-missing",
        keyed_dlx(**{"dead-letter-routing-key": None}),
        governed(without="dead-letter-routing-key"),
    ),
    Row("drop-head", governed(overflow="drop-head", max_length=9), governed(max_length=9)),
    Row(
        "drop-head",
        objects({"w": {"type": "classic", "max_length_bytes": 9}}),
        objects({"w": {"type": "stream", "max_length_bytes": 9}}),
    ),
    Row(
        "reject-publish-dlx",
        governed(overflow="reject-publish-dlx"),
        objects({"w": {"type": "classic", "overflow": "reject-publish-dlx"}}),
    ),
    Row("limit-on-delay-target", delayed("w", max_length=9), governed(max_length=9)),
    Row("delay-unsafe-name", delayed("q:w"), delayed("faq:w")),
    Row("delay-unsafe-name", delayed("w.*"), delayed("w-.x")),
    Row("delivery-limit-argument", governed({"delivery_limit": 50}), governed(delivery_limit=50)),
    Row(
        "delivery-limit-with-ledger",
        shop(
            policies={
                "x": {
                    "pattern": "^shop[.]stock$",
                    "priority": 200,
                    "definition": {**SAFE, "delivery-limit": 9},
                }
            }
        ),
        shop(),
    ),
    Row(
        "delivery-limit-with-ledger",
        shop(
            policies={
                "x": {"pattern": "^shop[.]stock$", "priority": 200, "definition": {"overflow": "drop-head"}}
            }
        ),
        shop(WorkQueue(without_store=True)),
    ),
    Row(
        "consumer-timeout-too-short",
        shop(WorkQueue(hard_time_limit=HOUR)),
        shop(WorkQueue(hard_time_limit=HOUR / 2)),
    ),
    Row(
        "consumer-timeout-too-short",
        shop(WorkQueue(hard_time_limit=HOUR / 2)),
        shop(WorkQueue(hard_time_limit=HOUR / 2)),
        (3, 10),
    ),
    Row("consumer-timeout-too-short", shop(), shop(), options={"hard_limits": {"shop.stock": HOUR}}),
    Row("policies-tied", two_policies(5), two_policies(6)),
    Row(
        "policy-never-matches", objects({"w": {}}, {"w": {"pattern": "^v$", "definition": SAFE}}), governed()
    ),
    Row(
        "policy-never-matches",
        objects({"w": {"type": "classic"}}, {"w": {"pattern": "^w$", "definition": SAFE}}),
        objects(
            {"w": {"type": "classic"}},
            {"w": {"pattern": "^w$", "definition": {"overflow": "reject-publish"}}},
        ),
    ),
    Row("policy-other-version", old(consumer_timeout=1), old(consumer_timeout=1), (3, 10), (3, 12)),
    Row("policy-other-version", governed(), governed(without="delivery-limit"), (3, 13), (4, 0)),
    Row("policy-other-version", governed(delayed_retry_min=1), governed(delayed_retry_min=1), (4, 0), (4, 3)),
    Row("policy-other-version", old(ha_mode="all"), old(ha_mode="all"), (4, 0), (3, 13)),
    Row(
        "policy-other-version",
        objects(
            policies={
                "letters": {
                    "pattern": "^letters$",
                    "apply_to": "quorum_queues",
                    "definition": {"overflow": "reject-publish"},
                }
            }
        ),
        old(),
        (3, 10),
        (3, 12),
    ),
    Row(
        "pattern-unanchored",
        objects(operator_policies={"o": {"pattern": "w", "definition": {"max-length": 9}}}),
        objects(operator_policies={"o": {"pattern": "^w", "definition": {"max-length": 9}}}),
    ),
    Row(
        "not-on-quorum",
        [Queue(name="w", arguments={**QUORUM, "x-max-priority": 5})],
        [Queue(name="w", arguments={"x-queue-type": "classic", "x-max-priority": 5})],
    ),
    Row(
        "not-on-quorum",
        [Queue(name="w", auto_delete=True, arguments=QUORUM)],
        [Queue(name="w", arguments=QUORUM)],
    ),
    Row(
        "not-on-quorum", [Queue(name="w", durable=False, arguments=QUORUM)], [Queue(name="w", durable=False)]
    ),
    Row("type-left-open", objects({"w": {"type": "default"}}), objects({"w": {"type": "classic"}})),
    Row("type-left-open", [Queue(name="w")], [Queue(name="w", arguments=QUORUM)]),
    Row(
        "transient-queue",
        objects({"w": {"type": "classic", "durable": False}}),
        objects({"w": {"type": "classic", "auto_delete": True}}),
    ),
    Row(
        "argument-deprecated",
        objects({"w": {"type": "classic", "mode": "lazy"}}),
        objects({"w": {"type": "classic", "mode": "lazy"}}),
        (4, 0),
        (3, 10),
    ),
    Row(
        "argument-deprecated",
        objects({"w": {"type": "classic", "version": 1}}),
        objects({"w": {"type": "classic", "version": 2}}),
    ),
    Row("default-guest", objects(users={"guest": {}}), objects(users={"guest2": {}})),
    Row("default-guest", objects(permissions={"guest": {}}), objects(permissions={"shop": {}})),
    Row("even-cluster", shop(), shop(), options={"nodes": 2}, near_options={"nodes": 3}),
    Row("even-cluster", governed({"initial_group_size": 4}), governed({"initial_group_size": 5})),
    Row(
        "direct-exchange-delay",
        shop(
            exchanges={"d": {"type": "direct"}},
            bindings=[{"source": "d", "destination": "shop.stock", "routing_key": "k"}],
        ),
        shop(
            exchanges={"d": {"type": "topic"}},
            bindings=[{"source": "d", "destination": "shop.stock", "routing_key": "k"}],
        ),
    ),
    Row(
        "alternate-hides-unroutable",
        alternate("e"),
        alternate(
            "dlx2",
            queues={"w": {}},
            policies={"w": {"pattern": "^w$", "definition": {**SAFE, "dead-letter-exchange": "dlx2"}}},
        ),
    ),
    Row(
        "alternate-hides-unroutable",
        shop(
            policies={
                "x": {
                    "pattern": "^shop$",
                    "apply_to": "exchanges",
                    "definition": {"alternate-exchange": "amq.fanout"},
                }
            }
        ),
        shop(
            policies={
                "x": {
                    "pattern": "^shop$",
                    "apply_to": "exchanges",
                    "definition": {"federation-upstream-set": "all"},
                }
            }
        ),
    ),
    Row(
        "broker-exchange-dead-end",
        objects(
            {"w": {}},
            {"w": {"pattern": "^w$", "definition": {**SAFE, "dead-letter-exchange": "t"}}},
            {"t": {}},
            [{"source": "t", "destination": "letters", "routing_key": "w"}],
        ),
        governed(),
    ),
    Row("hash-over-matches", topic("a.#"), topic("b.#")),
    Row("hash-over-matches", topic("#"), topic("#", type="headers")),
    Row("too-many-hashes", topic("#.a.#.b.#"), topic("#.a.#.b")),
    Row("too-many-hashes", topic("#.a.#.b.#"), topic("#.a.#.b.#"), near_version=(4, 0)),
]


def found(
    declared: Topology | list[BrokerObject], version: tuple[int, int], options: Mapping[str, Any]
) -> set[str]:
    """Return the ids of the rules that find something."""
    if isinstance(declared, Topology):
        return {each.rule.id for each in lint(declared, version, **options)}
    return {each.rule.id for each in lint_world(World(declared, version))}


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.rule}-{number}" for number, row in enumerate(ROWS)])
def test_a_rule_finds_its_bad_example_and_not_the_near_miss(row: Row) -> None:
    """A bad example triggers the rule that is meant, what is close to it and fine does not."""
    assert row.rule in found(row.bad, row.version, row.options)
    assert row.rule not in found(row.near_miss, row.near_version, row.near_options)


def test_every_rule_has_a_row() -> None:
    """No rule is without a bad example."""
    assert {row.rule for row in ROWS} == {rule.id for rule in RULES}
    assert len({rule.id for rule in RULES}) == len(RULES)


@settings(deadline=None)
@given(topologies(), st.sampled_from(VERSIONS), st.integers(1, 9))
def test_the_short_form_is_always_clean(topology: Topology, version: tuple[int, int], nodes: int) -> None:
    """What follows from the short form has nothing to find, on any version; an even cluster aside."""
    rules = {each.rule.id for each in lint(topology, version, nodes=nodes)}
    assert rules <= ({"even-cluster"} if nodes % 2 == 0 else set())


def test_a_rule_can_be_ignored() -> None:
    """An ignored rule finds nothing; the others still do."""
    bad = objects({"w": {"delivery_limit": 4}})
    assert {"quorum-without-dlx", "delivery-limit-argument"} <= found(bad, (4, 3), {})
    assert found(bad, (4, 3), {"ignore": ["quorum-without-dlx"]}) == {"delivery-limit-argument"}


def test_the_worst_comes_first() -> None:
    """Findings are ordered by severity."""
    bad = objects({"w": {}, "v": {"type": "default"}}, {"x": {"pattern": "^nope$", "definition": SAFE}})
    ranks = [each.rule.severity.rank for each in lint(bad, (4, 3))]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) > 1


def test_a_finding_says_where(tmp_path: Path) -> None:
    """A finding in a file names file and line, for the short and the full form."""
    path = tmp_path / "t.yaml"
    path.write_text(
        "name: s\nqueues:\n  s.w:\n    hard_time_limit: PT9H\nobjects:\n  queues:\n    x:\n  bindings:\n"
        "    - {source: s, destination: x, routing_key: '#'}\n"
    )
    places = {each.rule.id: each.where for each in lint(Topology.load(path), (4, 3))}
    assert places["consumer-timeout-too-short"] == f"{path}:3"
    assert places["quorum-without-dlx"] == f"{path}:7"
    assert places["hash-over-matches"] == f"{path}:9"


def test_a_delay_key_without_anchor_takes_another_queues_messages() -> None:
    """``#.b`` at the end of a delay path also takes what is on its way to ``a.b``; ``#.q:b`` does not."""

    def path(anchor: str) -> list[BrokerObject]:
        names = ("b", "a.b")
        return [
            *(Queue(name=name, arguments=QUORUM) for name in names),
            *(
                Binding(source="x_delayed_delivery", destination=name, routing_key=f"#.{anchor}{name}")
                for name in names
            ),
        ]

    assert "hash-over-matches" in found(path(""), (4, 3), {})
    assert "hash-over-matches" not in found(path("q:"), (4, 3), {})


def catalogue() -> str:
    """Return the table of the rules as the documentation has it."""
    lines = ["| rule | severity | what is found | what is lost | fix |", "|---|---|---|---|---|"]
    for rule in sorted(RULES, key=lambda rule: rule.id):
        since = f" (since {rule.since[0]}.{rule.since[1]})" if rule.since else ""
        lines.append(f"| `{rule.id}` | {rule.severity}{since} | {rule.title} | {rule.lost} | {rule.fix} |")
    return "\n".join(lines)


def test_the_documented_catalogue_is_that_of_the_rules() -> None:
    """The table in the documentation is the rules' own."""
    assert catalogue() in CATALOGUE.read_text(encoding="utf-8")
