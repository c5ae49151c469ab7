"""``unlost topology lint``: what in a topology could lose messages."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import click

from unlost.cli.errors import Exit, reports_errors
from unlost.cli.topologies.options import (
    as_json,
    load_topology,
    rabbitmq_option,
    topology_source,
    version_of,
)
from unlost.topology.lint import RULES, Finding, Severity, lint

_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}


@click.command("lint")
@topology_source
@rabbitmq_option
@click.option("--nodes", type=click.IntRange(min=1), help="How many nodes the cluster has.")
@click.option(
    "--ignore",
    multiple=True,
    type=click.Choice([rule.id for rule in RULES]),
    metavar="RULE",
    help="Leave out a rule; may be given several times.",
)
@as_json
@reports_errors
def lint_command(
    path: Path | None,
    module: str | None,
    rabbitmq: str,
    nodes: int | None,
    ignore: tuple[str, ...],
    as_json: bool,
) -> None:
    """Find what in the topology in PATH could lose messages, without asking a broker.

    Exits with 1 if there is an error or a warning.
    """
    found = lint(load_topology(path, module), version_of(rabbitmq), nodes=nodes, ignore=ignore)
    if as_json:
        click.echo(json.dumps({"findings": [_as_json(each) for each in found]}))
    else:
        for each in found:
            _show(each)
        counts = Counter(each.rule.severity for each in found)
        click.echo(
            ", ".join(f"{counts[each]} {each}" for each in Severity if counts[each]) or "Nothing found."
        )
    serious = any(each.rule.severity is not Severity.INFO for each in found)
    raise SystemExit(Exit.FOUND if serious else Exit.FINE)


def _show(found: Finding) -> None:
    click.secho(str(found), fg=_COLOURS[found.rule.severity])
    click.echo(f"    lost: {found.rule.lost}")
    click.echo(f"    fix:  {found.rule.fix}")


def _as_json(found: Finding) -> dict[str, str | None]:
    return {
        "rule": found.rule.id,
        "severity": found.rule.severity,
        "kind": found.kind,
        "key": found.key,
        "wrong": found.wrong,
        "lost": found.rule.lost,
        "fix": found.rule.fix,
        "where": found.where,
    }
