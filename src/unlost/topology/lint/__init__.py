"""Rules about topologies: each is tied to a way of losing messages, and says what is lost, and the fix."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import timedelta
from types import MappingProxyType

from unlost.topology.expand import Version, expand
from unlost.topology.lint import dead_letters, limits, policies, queues, routes
from unlost.topology.lint.rule import Finding, Rule, Severity
from unlost.topology.lint.world import World
from unlost.topology.model import Topology

__all__ = ["RULES", "Finding", "Rule", "Severity", "World", "lint", "lint_world"]

RULES: tuple[Rule, ...] = (
    *dead_letters.RULES,
    *limits.RULES,
    *policies.RULES,
    *queues.RULES,
    *routes.RULES,
)

_NO_LIMITS: Mapping[str, timedelta] = MappingProxyType({})


def lint(
    topology: Topology,
    version: Version,
    *,
    nodes: int | None = None,
    hard_limits: Mapping[str, timedelta] = _NO_LIMITS,
    ignore: Collection[str] = (),
) -> list[Finding]:
    """Return what in a topology could lose messages on a broker of a version, the worst first.

    Args:
        topology: What is declared.
        version: Major and minor version of the broker.
        nodes: How many nodes the cluster has, if that is known.
        hard_limits: Hard time limit of the slowest task per queue, beside those that the topology declares.
        ignore: Ids of rules to leave out.

    Raises:
        TopologyError: The broker is too old for any safe topology.
    """
    world = World(expand(topology, version).objects, version, topology, nodes=nodes, hard_limits=hard_limits)
    return lint_world(world, ignore)


def lint_world(world: World, ignore: Collection[str] = ()) -> list[Finding]:
    """Return what in any set of objects could lose messages, the worst first."""
    found = [finding for rule in RULES if rule.id not in ignore for finding in rule.findings(world)]
    return sorted(found, key=lambda finding: (finding.rule.severity.rank, finding.rule.id, finding.key))
