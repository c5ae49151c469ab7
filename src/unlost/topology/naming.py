"""The name of every object, computed from the names a topology declares.

All functions here are total and pure, so that a publisher, a worker and ``unlost topology apply``
agree without asking the broker. The delay path's names and routing keys are those of
``kombu.transport.native_delayed_delivery``, which a test compares; kombu itself is not imported, because
a topology must be readable without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta

from unlost.errors import ConfigurationError, TopologyError

MAX_LEVELS = 28
MAX_QUEUE_NAME_BYTES = 190
# Also bounds what is derived from it: the longest suffix is "_celery_delayed_delivery".
MAX_TOPOLOGY_NAME_BYTES = 190

_SECOND = timedelta(seconds=1)
_DELAY_KEY = re.compile(r"(?P<bits>(?:[01]\.)+)q:(?P<queue>.+)")


def dead_letter_queue_of(queue: str) -> str:
    """Return the name of the queue that holds the dead letters of a work queue."""
    return f"{queue}.dlq"


def dead_letter_exchange_of(name: str) -> str:
    """Return the name of a topology's dead-letter exchange."""
    return f"{name}.dlx"


def unroutable_exchange_of(name: str) -> str:
    """Return the name of the exchange where whatever the broker itself cannot route ends."""
    return f"{name}.unroutable"


def unroutable_queue_of(name: str) -> str:
    """Return the name of the queue that keeps whatever the broker itself could not route."""
    return f"{name}.unroutable"


def delay_level(prefix: str, level: int) -> str:
    """Return the name that the exchange and the queue of one delay level share.

    Level ``n`` holds a message for ``2**n`` seconds if its bit ``n`` is set, or passes it on at once.
    """
    return f"{prefix}_celery_delayed_{level}"


def delay_entry_exchange(prefix: str, levels: int) -> str:
    """Return the exchange to which delayed messages are published: the top level's."""
    return delay_level(prefix, levels - 1)


def delay_delivery_exchange(prefix: str) -> str:
    """Return the exchange that messages reach when their delay is over."""
    return f"{prefix}_celery_delayed_delivery"


def is_delay_exchange(prefix: str, exchange: str) -> bool:
    """Return whether an exchange is a level of this application's delay path."""
    stem, _, level = exchange.rpartition("_")
    return level.isdigit() and f"{stem}_{level}" == delay_level(prefix, int(level))


def delay_target(queue: str) -> str:
    """Return the anchored end of a delay routing key.

    The anchor keeps ``#.q:b`` from matching what is on its way to a queue named ``a.b``.
    """
    return f"q:{queue}"


def delay_routing_key(delay: timedelta, queue: str, levels: int) -> str:
    """Return the routing key that carries a message through the delay path to a queue.

    Args:
        delay: How long it shall wait; rounded up to whole seconds, so that nothing is early, and to at
            least one second, because the path cannot hold a message for less.
        queue: The work queue where it shall arrive.
        levels: How many levels the path has.

    Raises:
        ConfigurationError: The delay is longer than the levels can hold.
    """
    seconds = max(1, -(-delay // _SECOND))
    if seconds >= 2**levels:
        raise ConfigurationError(
            f"a delay of {delay} is longer than {levels} delay levels can hold "
            f"({longest_delay(levels)}): shorten it, or declare more (delay.levels, at most {MAX_LEVELS})"
        )
    bits = ".".join(f"{seconds:0{levels}b}")
    return f"{bits}.{delay_target(queue)}"


def shortened_delay_key(routing_key: str, delay: timedelta) -> str | None:
    """Return a delay routing key with another delay; ``None`` when it is no key of a delay path."""
    found = _DELAY_KEY.fullmatch(routing_key)
    if found is None:
        return None
    levels = len(found["bits"]) // 2
    return delay_routing_key(min(delay, longest_delay(levels)), found["queue"], levels)


def waited_for(routing_key: str) -> timedelta | None:
    """Return the delay that a routing key of a delay path asks for; ``None`` when it is no such key."""
    found = _DELAY_KEY.fullmatch(routing_key)
    return None if found is None else timedelta(seconds=int(found["bits"].replace(".", ""), 2))


def longest_delay(levels: int) -> timedelta:
    """Return the longest delay that so many levels can hold."""
    return timedelta(seconds=2**levels - 1)


def check_queue_name(name: str) -> str:
    """Return the name of a work queue if the delay path can address it.

    Raises:
        TopologyError: It is empty, reserved, too long for a delay routing key (255 bytes, of which 28
            levels and the anchor take 58), or would be read as a pattern or as another queue's address.
    """
    if problem := _problem_of_queue_name(name):
        raise TopologyError(f"queue name {name!r} {problem}; choose another name")
    return name


def _problem_of_queue_name(name: str) -> str | None:
    if not name:
        return "is empty"
    if name.startswith("amq."):
        return "begins with 'amq.', which is reserved for the broker"
    if len(name.encode()) > MAX_QUEUE_NAME_BYTES:
        return f"is longer than {MAX_QUEUE_NAME_BYTES} bytes, so its delay routing key would not fit"
    if "*" in name or "#" in name:
        return "contains '*' or '#', which are wildcards in a topic binding"
    if any(word.startswith("q:") for word in name.split(".")):
        return "has a word that begins with 'q:', which marks the address in a delay routing key"
    return None


def check_exchange_name(name: str) -> str:
    """Return the name of a topology or of its exchange if the broker accepts it.

    Raises:
        TopologyError: It is empty, reserved, or too long for the names derived from it.
    """
    if not name or name.startswith("amq.") or len(name.encode()) > MAX_TOPOLOGY_NAME_BYTES:
        raise TopologyError(
            f"name {name!r} must have 1 to {MAX_TOPOLOGY_NAME_BYTES} bytes "
            "and not begin with 'amq.', which is reserved for the broker"
        )
    return name


def queue_policy_of(queue: str) -> str:
    """Return the name of the one policy that governs a queue."""
    return f"unlost:queue:{queue}"


def exchange_policy_of(exchange: str) -> str:
    """Return the name of the one policy that governs an exchange."""
    return f"unlost:exchange:{exchange}"


def delay_exchanges_policy_of(prefix: str) -> str:
    """Return the name of the one policy that governs all exchanges of a delay path."""
    return exchange_policy_of(f"{prefix}_celery_delayed")


def queue_names(name: str, queues: Iterable[str], levels: int) -> list[str]:
    """Return the names of all queues of a topology, a repeated name as often as it occurs."""
    work = list(queues)
    dead = [dead_letter_queue_of(queue) for queue in work]
    return [*work, *dead, unroutable_queue_of(name), *delay_levels(name, levels)]


def exchange_names(name: str, exchange: str, levels: int) -> list[str]:
    """Return the names of all exchanges of a topology, a repeated name as often as it occurs."""
    own = [exchange, dead_letter_exchange_of(name), unroutable_exchange_of(name)]
    return [*own, delay_delivery_exchange(name), *delay_levels(name, levels)]


def delay_levels(prefix: str, levels: int) -> list[str]:
    """Return the names of all delay levels, the shortest first."""
    return [delay_level(prefix, level) for level in range(levels)]
