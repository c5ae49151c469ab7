"""``unlost topology verify``: what a running broker makes of a topology."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from unlost.broker.verify import Verdict, verify
from unlost.cli.errors import Exit, reports_errors
from unlost.cli.topologies.options import as_json, broker_options, connected, load_topology, topology_source

_COLOURS = {
    Verdict.OK: "green",
    Verdict.FOUND: "red",
    Verdict.UNKNOWN: "yellow",
    Verdict.SKIPPED: "bright_black",
}


@click.command("verify")
@topology_source
@broker_options
@click.option("--worker", metavar="USER", help="Check the permissions of the user that workers log in with.")
@click.option("--metrics", metavar="URL", help="Prometheus metrics: 'http://host:15692/metrics'.")
@as_json
@reports_errors
def verify_command(
    path: Path | None,
    module: str | None,
    broker: str,
    management_url: str | None,
    worker: str | None,
    metrics: str | None,
    as_json: bool,
) -> None:
    """Look at what a running broker makes of the topology in PATH: members, leaders, policies, alarms.

    Changes nothing. Exits with 1 if something is wrong, with 3 if something could not be told.
    """
    declared = load_topology(path, module)
    with connected(broker, management_url) as management:
        looks = verify(declared, management, worker=worker, metrics_url=metrics)
    if as_json:
        click.echo(json.dumps({"looks": [asdict(each) for each in looks]}))
    else:
        for each in looks:
            click.secho(f"{each.verdict:8}", fg=_COLOURS[each.verdict], nl=False)
            click.echo(f"{each.what}: {each.says}")
    verdicts = {each.verdict for each in looks}
    if Verdict.FOUND in verdicts:
        raise SystemExit(Exit.FOUND)
    raise SystemExit(Exit.UNKNOWN if Verdict.UNKNOWN in verdicts else Exit.FINE)
