"""``unlost topology apply``: bring a broker to a topology."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from unlost.broker.apply import Applied, apply, compare
from unlost.broker.management import Management
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
from unlost.topology.model import Topology
from unlost.topology.objects import Queue
from unlost.topology.plan import Plan, Step

#: A quorum queue that is younger may be forgotten, with all that it has confirmed, by a node that is killed:
#: seen live on 4.3.6 within the first second of its life, and not from two seconds on.
SETTLE = timedelta(seconds=5)


@click.command("apply")
@topology_source
@broker_options
@click.option("--yes", is_flag=True, help="Do it. Without, only show the plan.")
@click.option(
    "--allow-unbind", is_flag=True, help="Also remove undeclared bindings between declared objects."
)
@click.option(
    "--allow-destroy",
    is_flag=True,
    help="Also take destructive steps; each is refused while messages that it would cost are inside.",
)
@click.option(
    "--settle",
    type=click.FloatRange(min=0),
    default=SETTLE.total_seconds(),
    show_default=True,
    help="Seconds to wait for new queues to be safe on disk before saying that all is done.",
)
@as_json
@reports_errors
def apply_command(
    path: Path | None,
    module: str | None,
    broker: str,
    management_url: str | None,
    yes: bool,
    allow_unbind: bool,
    allow_destroy: bool,
    settle: float,
    as_json: bool,
) -> None:
    """Bring a broker to the topology in PATH (a YAML file or a folder of them).

    A dry run unless --yes: shows the plan, and exits with 1 if there is anything to do. With --yes it exits
    with 1 if a change was left because it needs a flag. Nothing is deleted without a flag.
    """
    declared = load_topology(path, module)
    with connected(broker, management_url) as management:
        found = compare(declared, management, secrets_of(declared))
        found.refuse_immutable()
        if not yes:
            _dry_run(found, as_json=as_json)
        applied = _apply(declared, management, found, allow_unbind, allow_destroy, quiet=as_json)
    if makes_queues(applied.steps):
        time.sleep(settle)
    _report(applied, as_json=as_json)
    raise SystemExit(Exit.FOUND if applied.withheld else Exit.FINE)


def makes_queues(steps: Iterable[Step]) -> bool:
    """Whether there is a queue behind these steps that was not there before, and is to settle."""
    return any(isinstance(step.object, Queue) and not step.deletes for step in steps)


def _dry_run(found: Plan, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"applied": False, "steps": [step_as_json(step) for step in found.drift]}))
    else:
        show_plan(found, Console(), unmanaged=False)
        if found.allowed(unbind=True, destroy=True):
            click.echo("A dry run: nothing was changed; run again with --yes.")
    raise SystemExit(Exit.FOUND if found.drift else Exit.FINE)


def _apply(
    declared: Topology,
    management: Management,
    found: Plan,
    allow_unbind: bool,
    allow_destroy: bool,
    *,
    quiet: bool,
) -> Applied:
    steps = found.allowed(unbind=allow_unbind, destroy=allow_destroy)
    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task("applying", total=len(steps))

        def advance(step: Step) -> None:
            progress.update(task, advance=1, description=f"{step.object.kind} {step.object.key}")

        return apply(
            declared,
            management,
            advance,
            allow_unbind=allow_unbind,
            allow_destroy=allow_destroy,
            secrets=secrets_of(declared),
        )


def _report(applied: Applied, *, as_json: bool) -> None:
    if as_json:
        content = {
            "applied": True,
            "steps": [step_as_json(step) for step in applied.steps],
            "withheld": [step_as_json(step) for step in applied.withheld],
            "unchanged": applied.unchanged,
        }
        click.echo(json.dumps(content))
        return
    for step in applied.steps:
        click.secho(f"{step}", fg="green")
    for step in applied.withheld:
        click.secho(f"left alone, needs a flag: {step}", fg="magenta")
    made = f"{applied.changed} changes made; " if applied.steps else "Nothing to change; "
    click.echo(f"{made}{applied.unchanged} objects were as declared.")
