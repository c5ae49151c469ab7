"""``unlost topology``: what a topology needs, and bringing a broker to it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from unlost.broker.apply import Applied, apply, pending
from unlost.broker.management import Management, management_url_of, vhost_of
from unlost.cli.errors import Exit, reports_errors
from unlost.cli.migrate import migrate_command
from unlost.topology.expand import Version, expand
from unlost.topology.model import Topology
from unlost.topology.objects import BrokerObject
from unlost.topology.plan import Step

_path = click.argument("path", type=click.Path(path_type=Path), default="topology/")


@click.group()
def topology() -> None:
    """Create exchanges, queues and policies as declared."""


topology.add_command(migrate_command)


@topology.command("apply")
@_path
@click.option(
    "--broker",
    envvar=["UNLOST_BROKER_URL", "CELERY_BROKER_URL"],
    show_envvar=True,
    required=True,
    metavar="URL",
    help="AMQP URL of the broker; its vhost is where the topology goes.",
)
@click.option(
    "--management",
    "management_url",
    envvar="UNLOST_MANAGEMENT_URL",
    show_envvar=True,
    metavar="URL",
    help="URL of the management API. Default: port 15672 of the broker's host.",
)
@click.option("--yes", is_flag=True, help="Do it. Without, only list the steps.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@reports_errors
def apply_command(path: Path, broker: str, management_url: str | None, yes: bool, as_json: bool) -> None:
    """Bring a broker to the topology in PATH (a YAML file or a folder of them).

    A dry run unless --yes: lists the steps, and exits with 1 if there are any. Nothing is ever deleted.
    """
    declared = Topology.load(path)
    with Management(management_url or management_url_of(broker), vhost_of(broker)) as management:
        steps = pending(declared, management)
        if yes:
            applied = _apply(declared, management, len(steps), quiet=as_json)
            _report(applied.steps, as_json=as_json, applied=True)
            return
    _report(steps, as_json=as_json, applied=False)
    raise SystemExit(Exit.FOUND if steps else Exit.FINE)


@topology.command("export")
@_path
@click.option("--expanded", is_flag=True, help="Everything that must exist on the broker, in order.")
@click.option("--rabbitmq", default="4.3", show_default=True, metavar="VERSION", help="For which version.")
@reports_errors
def export_command(path: Path, expanded: bool, rabbitmq: str) -> None:
    """Print the topology in PATH as JSON, without asking a broker."""
    declared = Topology.load(path)
    content: Any = declared.model_dump(mode="json")
    if expanded:
        content = [_as_json(each) for each in expand(declared, _version(rabbitmq)).objects]
    click.echo(json.dumps(content, indent=2))


def _apply(declared: Topology, management: Management, steps: int, *, quiet: bool) -> Applied:
    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task("applying", total=steps)

        def advance(step: Step) -> None:
            progress.update(task, advance=1, description=f"{step.object.kind} {step.object.key}")

        return apply(declared, management, advance)


def _report(steps: tuple[Step, ...], *, as_json: bool, applied: bool) -> None:
    if as_json:
        content = [{"action": step.action, **_as_json(step.object)} for step in steps]
        click.echo(json.dumps({"applied": applied, "steps": content}))
        return
    for step in steps:
        click.secho(f"{step}", fg="green" if applied else "yellow")
    click.echo(_summary(len(steps), applied=applied))


def _summary(steps: int, *, applied: bool) -> str:
    if not steps:
        return "The broker has all of it; nothing to change."
    return f"{steps} changes made." if applied else f"{steps} changes to make; run again with --yes."


def _as_json(each: BrokerObject) -> dict[str, Any]:
    return {"kind": each.kind, **asdict(each)}


def _version(text: str) -> Version:
    try:
        major, minor, *_ = (int(part) for part in text.split("."))
    except ValueError as exc:
        raise click.BadParameter(f"{text!r} is no version such as 4.3", param_hint="--rabbitmq") from exc
    return major, minor
