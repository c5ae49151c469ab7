"""``unlost topology schema``: the JSON Schema of the YAML."""

from __future__ import annotations

import json

import click

from unlost.topology.model import Topology
from unlost.topology.schema import schema_of


@click.command("schema")
@click.option("--json", "_as_json", is_flag=True, help="As it always is: one JSON object.")
def schema_command(_as_json: bool) -> None:
    """Print the JSON Schema of a topology's YAML.

    Save it and name it in the first line of a file, and editors complete the keys:

    # yaml-language-server: $schema=topology.schema.json
    """
    click.echo(json.dumps(schema_of(Topology), indent=2))
