"""Is the declared topology on the broker? Passive declares only: workers never declare."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import amqp

from unlost.errors import TopologyError
from unlost.tasks.runtime import Runtime
from unlost.topology import naming


def check_topology(connection: Any, runtime: Runtime, queues: Iterable[str]) -> None:
    """Check that queues, exchanges and the delay path exist.

    What only a policy says cannot be seen from here: a worker may not read policies.

    Args:
        connection: An open kombu connection.
        runtime: Whose topology to check.
        queues: The work queues that will be consumed.

    Raises:
        TopologyError: Something is missing; names it and the command that creates it.
    """
    topology = runtime.topology
    names = list(queues)
    dead_letters = [naming.dead_letter_queue_of(queue) for queue in names if queue in topology.queues]
    missing = [
        f"queue {name!r}" for name in [*names, *dead_letters] if not _exists(connection, "queue", name)
    ]
    levels = naming.delay_levels(topology.name, topology.delay.levels)
    missing += [f"queue {name!r}" for name in levels if not _exists(connection, "queue", name)]
    exchanges = (
        topology.exchange,
        naming.dead_letter_exchange_of(topology.name),
        *levels,
        naming.delay_delivery_exchange(topology.name),
    )
    missing += [f"exchange {name!r}" for name in exchanges if not _exists(connection, "exchange", name)]
    if missing:
        raise TopologyError(
            f"vhost {connection.virtual_host!r} lacks {', '.join(missing)}: run `unlost topology apply` first"
        )


def _exists(connection: Any, kind: str, name: str) -> bool:
    """Declare passively on a channel of its own: a 404 closes it."""
    channel = connection.channel()
    try:
        if kind == "queue":
            channel.queue_declare(name, passive=True)
        else:
            channel.exchange_declare(name, "topic", passive=True)
    except amqp.exceptions.NotFound:
        return False
    channel.close()
    return True
