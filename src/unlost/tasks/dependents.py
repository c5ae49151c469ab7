"""Tells those who wait for a message that it will not succeed: its chord, its errbacks, its result's readers.

Celery's tracer tells them of whatever fails in the child. What ends outside of it (a message that no worker
can run, a revoked one, a payload that is gone) would leave a chord waiting for ever. The result backend is
asked once and last: whatever it answers, settlement does not change.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from celery import Celery, states
from celery.app.task import Context
from celery.exceptions import TaskRevokedError
from kombu.exceptions import KombuError
from kombu.serialization import loads

from unlost.core.envelope import problem_of_body

logger = logging.getLogger(__name__)


class DeadLettered(Exception):
    """The message is in the dead-letter queue; what chord and errbacks are told."""


def tell_failed(app: Celery, message: Any, reason: str, text: str) -> None:
    """Tell that a delivery has become a letter; nobody, if it does not even name a task id.

    Args:
        app: Whose result backend.
        message: The delivery, as kombu has it.
        reason: Of the letter.
        text: What is wrong.
    """
    headers = message.headers if isinstance(message.headers, Mapping) else {}
    if not isinstance(headers.get("id"), str) or not isinstance(headers.get("task"), str):
        return
    args, kwargs, embed = _payload_of(message)
    # Celery asks the delivery whether it was eager, before it sends errbacks.
    request = {**headers, **(embed or {}), "args": args, "kwargs": kwargs, "delivery_info": {}}
    _tell(app, Context(request), DeadLettered(f"{reason}: {text}"), states.FAILURE)


def tell_ended(app: Celery, request: Mapping[str, Any], why: Exception) -> None:
    """Tell that a task whose request is at hand will not run: revoked, or with its payload gone."""
    state = states.REVOKED if isinstance(why, TaskRevokedError) else states.FAILURE
    _tell(app, Context(dict(request)), why, state)


def _tell(app: Celery, request: Context, exc: Exception, state: str) -> None:
    task = app.tasks.get(request.task)
    backend = app.backend if task is None else task.backend
    try:
        backend.mark_as_failure(
            request.id,
            exc,
            request=request,
            store_result=not request.ignore_result,
            # A revoked task has no errbacks in Celery either.
            call_errbacks=state == states.FAILURE,
            state=state,
        )
    except Exception:
        # Any backend, any error: the letter and the ledger say what happened.
        logger.exception("%s[%s]: those who wait for it could not be told", request.task, request.id)


def _payload_of(message: Any) -> Any:
    """Return what a delivery's body says, or an empty payload: it may be why there is a letter at all."""
    accepted = {"application/json"}
    try:
        payload = loads(message.body, message.content_type, message.content_encoding, accept=accepted)
    except (KombuError, LookupError, TypeError, ValueError, RecursionError) as exc:
        logger.info("the body of a dead letter cannot be read: %s", exc)
        return (), {}, {}
    return payload if problem_of_body(payload) is None else ((), {}, {})
