"""``unlost topology export``: a topology in other forms, without asking a broker."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import click

from unlost.cli.errors import reports_errors
from unlost.cli.topologies.options import (
    load_topology,
    rabbitmq_option,
    secrets_of,
    topology_source,
    version_of,
)
from unlost.topology.definitions import definitions_of
from unlost.topology.document import document_of, to_yaml
from unlost.topology.expand import expand
from unlost.topology.model import Topology
from unlost.topology.objects import BrokerObject, shown
from unlost.topology.picture import Graph, dot, markdown, mermaid

_SALT_BYTES = 4


@click.command("export")
@topology_source
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "yaml", "definitions", "mermaid", "dot", "markdown"]),
    default="json",
    show_default=True,
    help="definitions: what RabbitMQ imports at boot, with password hashes.",
)
@click.option("--expanded", is_flag=True, help="Everything that must exist on the broker, one by one.")
@click.option("--vhost", default="/", show_default=True, help="For definitions: the vhost that holds it.")
@click.option("--delay-path", is_flag=True, help="For pictures: draw the levels of the delay path, too.")
@rabbitmq_option
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@reports_errors
def export_command(
    path: Path | None,
    module: str | None,
    form: str,
    expanded: bool,
    vhost: str,
    delay_path: bool,
    rabbitmq: str,
    as_json: bool,
) -> None:
    """Print the topology in PATH in another form, without asking a broker."""
    declared = load_topology(path, module)
    passwords = secrets_of(declared) if form == "definitions" else {}
    objects = expand(declared, version_of(rabbitmq), passwords).objects
    if as_json or form == "json":
        click.echo(json.dumps(_json(declared, objects, expanded=expanded), indent=2))
    elif form == "yaml":
        click.echo(to_yaml(document_of(objects) if expanded else _declared(declared)), nl=False)
    elif form == "definitions":
        definitions = definitions_of(objects, vhost, lambda: secrets.token_bytes(_SALT_BYTES))
        click.echo(json.dumps(definitions, indent=2))
    elif form == "markdown":
        click.echo(markdown(objects), nl=False)
    else:
        draw = mermaid if form == "mermaid" else dot
        click.echo(draw(Graph(objects, delay_path=delay_path)), nl=False)


def _json(declared: Topology, objects: tuple[BrokerObject, ...], *, expanded: bool) -> Any:
    return [{"kind": each.kind, **shown(each)} for each in objects] if expanded else _declared(declared)


def _declared(declared: Topology) -> dict[str, Any]:
    """Return a topology as it was understood, defaults included; objects only if there are any."""
    return declared.model_dump(mode="json", exclude_none=True)
