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

from unlost.core import headers as h
from unlost.core.claims import waiting_of
from unlost.core.envelope import EMBEDDED, problem_of_body
from unlost.tasks.received import raw_body_of

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
    payload = _payload_of(message)
    args, kwargs, embed = payload or ((), {}, {})
    # Celery asks the delivery whether it was eager, before it sends errbacks.
    own = {name: value for name, value in headers.items() if name not in EMBEDDED}
    given = {**own, **(embed or {}), "args": args, "kwargs": kwargs, "delivery_info": {}}
    request, why = Context(given), DeadLettered(f"{reason}: {text}")
    _tell(app, request, why, states.FAILURE)
    if payload is None and request.group:
        _tell_group(app, request, why)


def tell_ended(app: Celery, request: Mapping[str, Any], why: Exception) -> None:
    """Tell that a task whose request is at hand will not run: revoked, or with its payload gone."""
    state = states.REVOKED if isinstance(why, TaskRevokedError) else states.FAILURE
    _tell(app, Context(dict(request)), why, state)


def _tell(app: Celery, request: Context, exc: Exception, state: str) -> None:
    try:
        _backend_of(app, request).mark_as_failure(
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


def _tell_group(app: Celery, request: Context, exc: Exception) -> None:
    """Count a failed member of which only the headers can be read, and thus not what its chord is.

    Every other member's body names the chord: the one that ends last tells it. Backends that look at the
    members' results have found this one's.
    """
    try:
        _backend_of(app, request).on_chord_part_return(request, states.FAILURE, exc)
    except Exception:
        # As above; and what the backend raises when this member is the last itself.
        logger.exception("%s[%s]: the chord of its group could not be told", request.task, request.id)


def _backend_of(app: Celery, request: Context) -> Any:
    task = app.tasks.get(request.task)
    return app.backend if task is None else task.backend


def _payload_of(message: Any) -> Any:
    """Return what a delivery's body says, or ``None``: it may be why there is a letter at all."""
    if h.CLAIM in message.headers:
        waiting = waiting_of(raw_body_of(message))
        return ([], {}, waiting) if waiting and problem_of_body([[], {}, waiting]) is None else None
    accepted = {"application/json"}
    try:
        payload = loads(message.body, message.content_type, message.content_encoding, accept=accepted)
    except (KombuError, LookupError, TypeError, ValueError, RecursionError) as exc:
        logger.info("the body of a dead letter cannot be read: %s", exc)
        return None
    return payload if problem_of_body(payload) is None else None
