"""The outbox in Django's transactions.

    with transaction.atomic():
        order = Order.objects.create(...)
        outbox.publish(charge_card, order_id=order.pk)

When the transaction commits, the task is published whatever dies in between (``transaction.on_commit`` loses
it with the process); when it rolls back, it never is.
"""

from __future__ import annotations

from typing import Any

from django.db import router

from unlost import outbox
from unlost.django.models import OutboxMessage
from unlost.django.transaction import DjangoTransaction


def publish(task: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Publish a task when Django's transaction commits; ``delay()`` with a transaction before it.

    The transaction is the one that is open on the database which the routers name for the model
    ``unlost.OutboxMessage``, ``default`` if they do not; :func:`apply_async` can be told another.

    Args:
        task: A task of an installed app, its class, or a signature or canvas of such tasks.
        *args: As for ``delay``.
        **kwargs: As for ``delay``.

    Returns:
        What ``delay`` returns: a result whose id is the message's.

    Raises:
        ConfigurationError: No transaction is open on the database, it has no outbox, or unlost is not
            installed on the task's app.
        pydantic.ValidationError: The payload is invalid; nothing was written.

    Crash safety:
        Before the commit nothing is kept. After it, the message is published, whatever dies.
    """
    return apply_async(task, args, kwargs)


def apply_async(
    task: Any,
    args: Any = None,
    kwargs: Any = None,
    *,
    using: str | None = None,
    ordering_key: str | None = None,
    **options: Any,
) -> Any:
    """Publish a task when Django's transaction commits; ``apply_async()`` with a transaction before it.

    Args:
        task: As for :func:`publish`.
        args: Positional arguments.
        kwargs: Keyword arguments.
        using: Alias of the database whose transaction it is; the routers' choice when not given.
        ordering_key: As for :func:`unlost.outbox.apply_async`.
        **options: As for ``apply_async``.

    Returns:
        What ``apply_async`` returns.

    Raises:
        As :func:`publish`.
    """
    place = DjangoTransaction(using or router.db_for_write(OutboxMessage))
    return outbox.apply_async(place, task, args, kwargs, ordering_key=ordering_key, **options)
