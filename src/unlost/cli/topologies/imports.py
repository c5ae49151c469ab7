"""``unlost topology import``: a live broker as a topology, so that an existing system can be adopted."""

from __future__ import annotations

import json

import click

from unlost.broker.inventory import live_of
from unlost.cli.errors import reports_errors
from unlost.cli.topologies.options import as_json, broker_options, connected
from unlost.topology.document import document_of, to_yaml

_KINDS = ("vhost", "parameter", "vhost limit")
_USERS = ("user", "user limit", "permission", "topic permission")


@click.command("import")
@broker_options
@click.option(
    "--users", is_flag=True, help="Users (with the hashes of their passwords) and permissions, too."
)
@as_json
@reports_errors
def import_command(broker: str, management_url: str | None, users: bool, as_json: bool) -> None:
    """Print everything that a broker's vhost holds as a topology in YAML.

    Exclusive queues and what belongs to the broker itself (amq.*) are left out. To adopt a system: import it,
    see that ``plan`` finds nothing to change, then ``lint``.
    """
    with connected(broker, management_url) as management:
        live = live_of(management, (*_KINDS, *(_USERS if users else ())))
        vhost = management.vhost
    document = document_of(live.objects)
    for kind, reason in live.unread.items():
        click.echo(f"{kind}: left out, it could not be read: {reason}", err=True)
    if as_json:
        click.echo(json.dumps(document))
    else:
        click.echo(to_yaml(document, f"Everything in vhost {vhost!r}, as it was found."), nl=False)
