"""``unlost topology plan``: the difference between a topology and a live broker."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from unlost.broker.apply import compare
from unlost.cli.errors import Exit, reports_errors
from unlost.cli.topologies.options import (
    as_json,
    broker_options,
    connected,
    load_topology,
    secrets_of,
    step_as_json,
    topology_source,
)
from unlost.cli.topologies.show import show_plan


@click.command("plan")
@topology_source
@broker_options
@click.option("--unmanaged", is_flag=True, help="List what is not declared, however much it is.")
@as_json
@reports_errors
def plan_command(
    path: Path | None,
    module: str | None,
    broker: str,
    management_url: str | None,
    unmanaged: bool,
    as_json: bool,
) -> None:
    """Compare the topology in PATH (a YAML file or a folder of them) with a broker.

    Changes nothing. Exits with 1 if the broker is not as declared; what others put there is no drift.
    """
    declared = load_topology(path, module)
    with connected(broker, management_url) as management:
        found = compare(declared, management, secrets_of(declared))
    if as_json:
        steps = [step_as_json(step) for step in found.steps]
        click.echo(
            json.dumps(
                {
                    "drift": bool(found.drift),
                    "unchanged": found.unchanged,
                    "unread": dict(found.unread),
                    "steps": steps,
                }
            )
        )
    else:
        show_plan(found, Console(), unmanaged=unmanaged)
    raise SystemExit(Exit.FOUND if found.drift else Exit.FINE)
