"""Spares the worker's event loop what Celery has it do for nothing."""

from __future__ import annotations

from typing import Any


def spare_the_poller(hub: Any) -> None:
    """Have a hub of kombu forget only the writers that it watches.

    At each turn of the loop Celery's pool has the hub forget the pipes to all of its idle processes. Nearly
    always they are forgotten already, and the kernel is asked for each, which refuses.

    Args:
        hub: The worker's; it enters a descriptor into its tables whenever it has the kernel watch it.
    """
    forget = hub.remove_writer

    def forget_if_watched(descriptor: Any) -> None:
        # What is no number may be closed, which the hub finds out.
        if type(descriptor) is not int or descriptor in hub.writers or descriptor in hub.readers:
            forget(descriptor)

    hub.remove_writer = forget_if_watched
