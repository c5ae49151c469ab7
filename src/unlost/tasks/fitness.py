"""Can this build handle a message? Asked without running it, of messages that lie in a queue."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from celery import Celery
from pydantic import ValidationError

from unlost.core import headers as h
from unlost.core.envelope import problem_of_body, problem_of_headers
from unlost.tasks.task import ReliableTask


def misfit(
    app: Celery, headers: Mapping[str, Any], properties: Mapping[str, Any], payload: Any
) -> tuple[str, str] | None:
    """Return the reason with which a worker of this app would refuse a message, and why; else ``None``.

    Values of the payload are not repeated: they may be secret.

    Args:
        app: With its tasks imported.
        headers: The message's headers.
        properties: Its AMQP properties.
        payload: Its decoded JSON body, or ``None``.
    """
    if (problem := problem_of_headers(headers)) is not None:
        return "malformed", problem
    if h.is_newer(headers):
        return "newer-version", "written by a newer release of unlost"
    task = app.tasks.get(headers["task"])
    if task is None:
        return "unknown-task", f"{headers['task']} is not registered here"
    if h.CLAIM in headers:
        # The payload is in the claim store, and is not fetched for a look.
        return None
    content_type = properties.get("content_type") or "application/json"
    if payload is None:
        return "undecodable", f"its body is no JSON ({content_type})"
    if (problem := problem_of_body(payload)) is not None:
        return "malformed", problem
    args, kwargs, _ = payload
    problem = _problem_of_arguments(task, args, kwargs)
    return None if problem is None else ("invalid-payload", problem)


def _problem_of_arguments(task: Any, args: Any, kwargs: Any) -> str | None:
    try:
        if isinstance(task, ReliableTask) and task.payload is not None:
            task.to_payload(args, kwargs)
        else:
            inspect.signature(task.run).bind(*args, **kwargs)
    except ValidationError as exc:
        found = exc.errors(include_input=False, include_context=False, include_url=False)
        return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in found)
    except TypeError as exc:
        return str(exc)
    return None
