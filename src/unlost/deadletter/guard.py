"""Is a queue safe to look at? Under a delivery limit looks may count, and the last one deletes the letter."""

from __future__ import annotations

from unlost.broker.management import Management, QueueStatus
from unlost.errors import DeadLetterError, QueueMissing

#: RabbitMQ's own limit for quorum queues that have none set (https://www.rabbitmq.com/docs/quorum-queues).
_DEFAULT_LIMIT = 20
_LIMITED_SINCE = (4, 0)
#: From here on a letter that is given back with ``basic.nack`` is not counted.
_UNCOUNTED_SINCE = (4, 3)

_ARGUMENT = "x-delivery-limit"
_POLICY = "delivery-limit"


def refuse_counting_looks(management: Management, queue: str) -> None:
    """Refuse a queue in which a look counts against its letters.

    Raises:
        QueueMissing: There is no such queue.
        DeadLetterError: A look would count; says what to do.
    """
    status = management.queue(queue)
    if status is None:
        raise QueueMissing(f"there is no queue {queue!r} in vhost {management.vhost!r}")
    if status.declared.arguments.get("x-queue-type") != "quorum":
        return
    version = management.version()
    limit = delivery_limit_of(status, _policy_limit(management, status), version)
    if limit is not None and version < _UNCOUNTED_SINCE:
        raise DeadLetterError(
            f"queue {queue!r} has a delivery limit of {limit}, and RabbitMQ {version[0]}.{version[1]} counts "
            f"every look: the letter that is looked at {limit + 1} times is deleted. Set delivery-limit to "
            "-1 by a policy (`unlost topology apply` does for its own queues), or give --count-looks"
        )


def delivery_limit_of(status: QueueStatus, by_policy: int | None, version: tuple[int, int]) -> int | None:
    """Return a quorum queue's effective delivery limit, or ``None`` if there is none.

    Of argument and policy the smaller counts; if either is negative, the larger (RabbitMQ 4.3,
    ``rabbit_quorum_queue.erl``).
    """
    argument = status.declared.arguments.get(_ARGUMENT)
    limits = [limit for limit in (argument, by_policy) if isinstance(limit, int)]
    if not limits:
        return _DEFAULT_LIMIT if version >= _LIMITED_SINCE else None
    limit = max(limits) if min(limits) < 0 else min(limits)
    return None if limit < 0 else limit


def _policy_limit(management: Management, status: QueueStatus) -> int | None:
    if status.effective_policy is not None:
        limit = status.effective_policy.get(_POLICY)
    else:
        policies = {policy.name: policy for policy in management.policies()}
        limit = policies[status.policy].definition.get(_POLICY) if status.policy in policies else None
    return limit if isinstance(limit, int) else None
