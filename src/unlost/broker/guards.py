"""A last look before a step that can cost messages: it is refused while they are there."""

from __future__ import annotations

import time
from datetime import timedelta

from unlost.broker.management import Management, QueueStatus
from unlost.errors import TopologyError
from unlost.topology.consequences import Risk
from unlost.topology.plan import Step

# The broker refreshes its totals every 5 s: an empty queue has been empty only if it stays so for longer.
_TOTALS_ARE_OLD = timedelta(seconds=6)
_LOOK_AGAIN_AFTER = timedelta(seconds=1)


def refuse_loss(step: Step, management: Management) -> None:
    """Refuse a step while messages that it would cost are inside.

    Whoever publishes meanwhile is not stopped: stop publishers and consumers of the queue first.

    Raises:
        TopologyError: Messages are there, or the broker does not say how many.
        BrokerError: The broker cannot be asked.
    """
    if not step.risks:
        return
    deadline = time.monotonic() + _TOTALS_ARE_OLD.total_seconds()
    while True:
        queues = {status.declared.name: status for status in management.queues()}
        for risk in step.risks:
            _refuse(step, risk, _endangered(risk, queues.get(risk.queue), management))
        if time.monotonic() > deadline:
            return
        time.sleep(_LOOK_AGAIN_AFTER.total_seconds())


def _endangered(risk: Risk, status: QueueStatus | None, management: Management) -> int | None:
    """Return how many messages are in danger; ``None`` if that cannot be told."""
    if status is None:
        return 0
    if not risk.pending_only:
        return status.messages
    if None in (status.messages, status.ready, status.unacknowledged):
        return management.pending_letters(risk.queue)
    # In the total and neither ready nor delivered: waiting for a confirm of the dead-letter queue, or for
    # a delayed retry, which the totals do not tell apart.
    aside = (status.messages or 0) - (status.ready or 0) - (status.unacknowledged or 0)
    return (management.pending_letters(risk.queue) or 0) or aside


def _refuse(step: Step, risk: Risk, endangered: int | None) -> None:
    if endangered == 0:
        return
    many = "an unknown number of" if endangered is None else str(endangered)
    what = "pending dead letters" if risk.pending_only else "messages"
    raise TopologyError(
        f"{step} is refused: queue {risk.queue!r} holds {many} {what}, and {risk.loss}. "
        "Let it run empty, then apply again"
    )
