"""Applies the topology of the application under test, and says where its letters are.

Run as ``python -m unlost.chaos.declare``; prints a JSON list of the queues that hold letters.
"""

from __future__ import annotations

import json
import sys

import click

from unlost.broker.apply import apply
from unlost.broker.management import Management, vhost_of
from unlost.chaos.subject import broker_option, load_app
from unlost.errors import UnlostError
from unlost.tasks.runtime import has_runtime, runtime_of
from unlost.topology import naming
from unlost.topology.model import Topology

MANAGEMENT_VARIABLE = "UNLOST_CHAOS_MANAGEMENT_URL"


@click.command()
@click.option("--app", "path", required=True)
@click.option("--management", envvar=MANAGEMENT_VARIABLE, required=True, hidden=True)
@broker_option
def main(path: str, management: str, broker: str) -> None:
    """Apply what the app was installed with; an app without unlost declares for itself."""
    try:
        letters = declare(path, management, broker)
    except UnlostError as exc:
        raise click.ClickException(str(exc)) from exc
    sys.stdout.write(json.dumps(letters))


def declare(path: str, management: str, broker: str) -> list[str]:
    """Apply the topology of an app, and return its queues of letters; none without unlost."""
    app = load_app(path, broker)
    if not has_runtime(app):
        return []
    topology = runtime_of(app).topology
    with Management(management, vhost_of(broker)) as api:
        apply(topology, api)
    return letters_of(topology)


def letters_of(topology: Topology) -> list[str]:
    """Return the queues of a topology that hold letters."""
    dead = [naming.dead_letter_queue_of(queue) for queue in topology.queues]
    return [*dead, naming.unroutable_queue_of(topology.name)]


if __name__ == "__main__":
    main()
