"""What Celery's pools cannot do, refused at the worker's start where a task relies on it.

==================  ==================================  ===============================
pool                hard time limit                     soft time limit
==================  ==================================  ===============================
prefork             the child is killed                 raised in the body
gevent, eventlet    raised at the next switch           ignored
threads, solo       ignored                             ignored
==================  ==================================  ===============================
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from unlost.errors import ConfigurationError
from unlost.tasks.task import ReliableTask

HARD, SOFT = "time_limit", "soft_time_limit"

#: By the name of the pool's module in Celery; a pool that is not named here is the application's own.
IGNORED: dict[str, Collection[str]] = {
    "thread": (HARD, SOFT),
    "solo": (HARD, SOFT),
    "gevent": (SOFT,),
    "eventlet": (SOFT,),
}


def refuse_limits(pool: Any, controller: Any, tasks: Iterable[Any], queues: Collection[str]) -> None:
    """Refuse a worker whose pool ignores a time limit that its tasks, or its options, count on.

    Args:
        pool: The worker's pool.
        controller: The worker, for ``--time-limit`` and ``--soft-time-limit``.
        tasks: All that are registered; only reliable ones are looked at.
        queues: What the worker consumes; a task of another queue does not matter.

    Raises:
        ConfigurationError: Names task, limit, pool and the way out.
    """
    kind = _kind(pool)
    for limit in ignored_by(pool):
        if getattr(controller, limit, None):
            raise ConfigurationError(
                _refusal("the worker's options", limit, getattr(controller, limit), kind)
            )
        for task in tasks:
            value = getattr(task, limit, None) if isinstance(task, ReliableTask) else None
            if value and (task.queue is None or task.queue in queues):
                raise ConfigurationError(_refusal(f"task {task.name}", limit, value, kind))


def refuse_spawn(controller: Any) -> None:
    """Refuse processes that are started anew instead of forked: nothing of the worker would be in them.

    Args:
        controller: The worker.

    Raises:
        ConfigurationError: Names the setting and the way out.
    """
    if getattr(controller, "pool_start_method", "fork") == "spawn":
        raise ConfigurationError(
            "worker_pool_start_method='spawn' starts processes in which no task is settled, since what "
            "settles it comes with the fork: leave it at 'fork', or use --pool=threads"
        )


def ignored_by(pool: Any) -> Collection[str]:
    """Return the limits that a pool ignores."""
    return IGNORED.get(_kind(pool), ())


def _kind(pool: Any) -> str:
    return type(pool).__module__.rpartition(".")[2]


def _refusal(whose: str, limit: str, value: Any, kind: str) -> str:
    name = {"thread": "threads"}.get(kind, kind)
    return (
        f"{whose}: {limit}={value!r} would be ignored by the pool {name!r}, and a body could run for ever. "
        f"Consume its queue with --pool=prefork, or remove the limit and bound the work in the body."
    )
