"""After the load: wait until nothing moves any more, then say what is left, and where."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Iterator
from datetime import timedelta
from typing import Any

from kombu import Connection

from unlost.broker.connection import open_connection
from unlost.broker.management import Management, QueueStatus
from unlost.chaos.history import Recorder
from unlost.chaos.workload import Workload
from unlost.errors import BrokerUnavailable, HarnessError
from unlost.testing.waiting import wait_until

#: RabbitMQ refreshes queue totals every five seconds, so an empty look must last longer than that.
QUIET = timedelta(seconds=8)
_PATIENCE = timedelta(seconds=10)


def wait_until_drained(management: Management, letters: Collection[str], patience: timedelta) -> bool:
    """Wait until all queues but those of letters are empty, each with a leader, for a while.

    Args:
        management: The broker's management API.
        letters: Names of queues that hold letters.
        patience: How long to wait.

    Returns:
        Whether that came; when not, what remains is recorded as residual and the verdict is unknown.
    """
    quiet_since = time.monotonic()

    def quiet() -> bool:
        nonlocal quiet_since
        if not _is_empty(management, letters):
            quiet_since = time.monotonic()
        return time.monotonic() - quiet_since > QUIET.total_seconds()

    try:
        return wait_until(quiet, patience, "the queues are empty", poll=timedelta(milliseconds=500))
    except HarnessError:
        return False


def _is_empty(management: Management, letters: Collection[str]) -> bool:
    try:
        return all(_has_drained(queue) for queue in _working(management, letters))
    except BrokerUnavailable:
        return False


def _has_drained(queue: QueueStatus) -> bool:
    # A quorum queue without a leader answers 0 although it holds thousands.
    led = queue.leader is not None or queue.declared.arguments.get("x-queue-type") != "quorum"
    return led and queue.messages == 0


def _working(management: Management, letters: Collection[str]) -> Iterator[QueueStatus]:
    # Celery's own reply and control queues carry no tasks.
    own = ("celery.pidbox", ".reply.celery.pidbox", "celeryev")
    for queue in management.queues():
        name = queue.declared.name
        if name not in letters and not any(part in name for part in own):
            yield queue


def record_residue(management: Management, letters: Collection[str], recorder: Recorder) -> None:
    """Record what is left in every queue that should be empty, and what state it is in."""
    for queue in _working(management, letters):
        recorder.record(
            "drain",
            "ok",
            "residual",
            queue.declared.name,
            messages=queue.messages,
            ready=queue.ready,
            unacknowledged=queue.unacknowledged,
            leader=queue.leader,
            state=queue.state,
        )


def record_letters(url: str, queues: Iterable[str], workload: Workload, recorder: Recorder) -> None:
    """Record every promised effect that a dead letter explains; the letters stay where they are.

    Each queue's ``letters`` says how many the broker counted and how many were read.
    """
    for queue, (count, letters) in _letters(url, queues):
        read = 0
        for headers, body in letters:
            read += 1
            _record_letter(headers, body, workload, recorder)
        recorder.record("drain", "ok", "letters", queue, messages=count, read=read)


def _record_letter(headers: dict[str, Any], body: bytes, workload: Workload, recorder: Recorder) -> None:
    task = str(headers.get("task", ""))
    try:
        args, kwargs, _ = json.loads(body)
    except ValueError:
        # A letter that is no task's explains no promise; if it was one, its promise is found missing.
        recorder.record("drain", "info", "foreign letter", reason=_reason(headers))
        return
    own = workload.value_of(task, args, kwargs)
    for value in workload.values_of_letter(task, args, kwargs):
        recorder.record("drain", "ok", "dead", value, reason=_reason(headers), own=value == own)


def _reason(headers: dict[str, Any]) -> Any:
    """Return why it died: as unlost says, else as the broker does."""
    deaths = headers.get("x-death") or [{}]
    return headers.get("x-unlost-death-reason") or deaths[0].get("reason")


def _letters(
    url: str, queues: Iterable[str]
) -> Iterator[tuple[str, tuple[int, Iterator[tuple[dict[str, Any], bytes]]]]]:
    """Get all letters unacked; closing the connection puts them back, uncounted where they have no limit."""
    connection = open_connection(Connection(url), connect_timeout=_PATIENCE, patience=_PATIENCE)
    try:
        channel = connection.channel()
        for queue in queues:
            count = channel.queue_declare(queue, passive=True).message_count
            yield queue, (count, _taken(channel, queue))
    finally:
        connection.close()


def _taken(channel: Any, queue: str) -> Iterator[tuple[dict[str, Any], bytes]]:
    while (message := channel.basic_get(queue)) is not None:
        yield message.properties.get("application_headers") or {}, message.body


def record_effects(workload: Workload, recorder: Recorder) -> None:
    """Record every effect that the database holds, at the time its row says."""
    for value, time_ns in workload.effects():
        recorder.record("database", "ok", "effect", value, time_ns=time_ns)
