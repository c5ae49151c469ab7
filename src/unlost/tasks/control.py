"""Remote control: revokes that outlive the workers that heard them, and a queue that nobody else holds.

Celery keeps revoked ids in the memory of the workers that were running: a restart forgets them. Here the id
is written to the store by whoever learns of it, the client that revokes or a worker that is told, and a
worker that starts reads them. Only ids are known at that moment, not whose messages they are, so they are
records of their own; when the message comes, its own row becomes ``cancelled``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any
from uuid import uuid4

from celery.app.control import Control
from kombu.pidbox import Mailbox
from kombu.utils.functional import maybe_list

from unlost.core.ids import Generation, MessageId
from unlost.core.ports import Ledger
from unlost.tasks.runtime import Runtime, runtime_of

logger = logging.getLogger(__name__)

#: In place of a task's name in the record of a revoked id.
REVOKED = "celery.revoked"

#: As many as a worker of Celery's remembers.
MOST = 50_000


class FreshMailbox(Mailbox):
    """Has each connection of a worker listen to a control queue of its own.

    Celery names the queue after the worker, and it is exclusive: as long as the broker takes the worker's
    last connection for alive it answers 405 to the next. That is until its heartbeats are missed and, if the
    connection was to a node of a cluster that died, until that node is back (seen on RabbitMQ 4.3.6: a worker
    could not consume for as long). Messages come by a fanout exchange, so the name is nobody's business.
    """

    def get_queue(self, hostname: str) -> Any:
        """Return a queue that there has never been; what is left of an older one ends with its connection.

        One that is not exclusive is never locked, and would be left behind: it keeps its name.
        """
        queue = super().get_queue(hostname)
        if self.queue_exclusive:
            queue.name = f"{hostname}.{uuid4().hex}.{self.namespace}.pidbox"
        return queue


class ReliableControl(Control):
    """Celery's remote control, whose revokes are written down before they are broadcast."""

    Mailbox = FreshMailbox

    def revoke(self, task_id: Any, *args: Any, **kwargs: Any) -> Any:
        """Revoke one task or several, for workers that run and for those that start later.

        Raises:
            StoreUnavailable: It could not be written down; nothing was broadcast.
        """
        record(runtime_of(self.app).ledger, maybe_list(task_id) or [])
        return super().revoke(task_id, *args, **kwargs)


def record(ledger: Ledger, task_ids: Iterable[str]) -> None:
    """Write revoked ids to the store; writing one again changes nothing."""
    for task_id in task_ids:
        ledger.cancel(MessageId(REVOKED, str(task_id)), Generation(0, 1))


def recorded(ledger: Ledger) -> list[str]:
    """Return the ids that were revoked and that the store still remembers."""
    prefix = f"{REVOKED}["
    found = ledger.find(prefix, MOST)
    return [message[len(prefix) : -1] for message, _ in found if message.startswith(prefix)]


def recording(runtime: Runtime, revoke: Callable[..., Any]) -> Callable[..., Any]:
    """Return a worker's answer to ``revoke``: it is written down too, off the main loop."""

    def revoke_and_record(state: Any, task_id: Any, *args: Any, **kwargs: Any) -> Any:
        runtime.in_background(record, runtime.ledger, maybe_list(task_id) or [])
        return revoke(state, task_id, *args, **kwargs)

    return revoke_and_record
