"""The transactional outbox: messages that commit with the caller's rows and are published afterwards.

    with Session(engine) as session, session.begin():
        session.add(Order(...))
        outbox.publish(session, ChargeCard, order_id=1)

When the transaction commits, the task is published whatever dies in between; when it rolls back, it never
is. A relay (``unlost outbox relay``) does the publishing. Nothing here knows Celery: a task carries its
app, and an installed app its outbox.
"""

from __future__ import annotations

from typing import Any

from unlost.errors import ConfigurationError


def publish(place: Any, task: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Publish a task when the transaction commits; ``delay()`` with a transaction before it.

    Args:
        place: An SQLAlchemy ``Session`` or ``Connection``, whose transaction the message belongs to.
        task: A task of an installed app, its class, or a signature or canvas of such tasks.
        *args: As for ``delay``.
        **kwargs: As for ``delay``.

    Returns:
        What ``delay`` returns: a result whose id is the message's.

    Raises:
        ConfigurationError: unlost is not installed on the task's app, ``place`` is no transaction, or its
            database has no outbox.
        pydantic.ValidationError: The payload is invalid; nothing was written.

    Crash safety:
        Before the commit nothing is kept. After it, the message is published, whatever dies.
    """
    return apply_async(place, task, args, kwargs)


def apply_async(
    place: Any,
    task: Any,
    args: Any = None,
    kwargs: Any = None,
    *,
    ordering_key: str | None = None,
    **options: Any,
) -> Any:
    """Publish a task when the transaction commits; ``apply_async()`` with a transaction before it.

    Args:
        place: As for :func:`publish`.
        task: As for :func:`publish`.
        args: Positional arguments.
        kwargs: Keyword arguments.
        ordering_key: Messages of one key are published one after the other, in the order in which their
            transactions commit; at most 255 bytes. Transactions that write under one key wait for each
            other from here to their end.
        **options: As for ``apply_async``: ``queue``, ``countdown``, ``eta``, ``priority``, ``headers``, ...

    Returns:
        What ``apply_async`` returns.

    Raises:
        As :func:`publish`.
    """
    app = getattr(task, "app", None)
    installed = getattr(getattr(app, "unlost", None), "outbox", None)
    if installed is None:
        raise ConfigurationError(
            f"{task!r} is no task or signature of an app on which unlost is installed: call "
            "unlost.install(app, topology=...) where the app is made"
        )
    return installed.apply_async(place, task, args, kwargs, ordering_key=ordering_key, **options)
