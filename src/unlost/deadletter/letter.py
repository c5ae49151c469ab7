"""A dead letter as a value: what it says of its message, of its death, and of what came before.

Letters of unlost say it in their own headers; those of plain Celery and of other programs are read as far
as the broker's ``x-death`` tells (https://www.rabbitmq.com/docs/dlx#effects).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from unlost.core import headers as h
from unlost.core.clock import from_epoch_ms, moment_of
from unlost.core.ids import MessageId
from unlost.deadletter.fingerprint import fingerprint

#: Dates beyond these are garbage in a header; datetime cannot hold all that 64 bits can.
_LATEST_MS = 253_370_764_800_000


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """One letter as it lies in a queue.

    Attributes:
        queue: Where it lies.
        exchange: By which exchange it came there: a dead-letter exchange, as a rule.
        routing_key: With which key.
        body: As it was published.
        headers: All of them, the broker's included.
        properties: AMQP basic properties but for the headers.
    """

    queue: str
    exchange: str = ""
    routing_key: str = ""
    body: bytes = field(default=b"", repr=False)
    headers: Mapping[str, Any] = field(default_factory=dict, repr=False)
    properties: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def message(self) -> MessageId | None:
        """Return the task message's identity; ``None`` for what is no task message."""
        task, ident = self.headers.get("task"), self.headers.get("id")
        if not isinstance(task, str) or not isinstance(ident, str) or not task or not ident:
            return None
        return h.message_id_of(self.headers)

    @cached_property
    def identity(self) -> str | None:
        """Return what all copies of one message share: task and id, or else the AMQP message id."""
        if self.message is not None:
            return str(self.message)
        ident = self.properties.get("message_id")
        return f"amqp:{ident}" if ident else None

    @property
    def id(self) -> str:
        """Return the task id, or the AMQP message id, or nothing."""
        return self.message.id if self.message else str(self.properties.get("message_id") or "")

    @property
    def task(self) -> str:
        """Return the task's name, or nothing."""
        return self.message.task if self.message else ""

    @cached_property
    def redrives(self) -> int:
        """Return how often the message had been sent back before it died here."""
        return self._number(h.REDRIVES) or 0

    @property
    def attempt(self) -> int:
        """Return the number of the attempt that ended in this letter, from 1."""
        return self._number(h.ATTEMPT) or (self._number("retries") or 0) + 1

    @property
    def crashes(self) -> int:
        """Return how many processes the message took down since it was published or sent back."""
        return self._number(h.CRASHES) or 0

    @property
    def lost(self) -> int:
        """Return how often another worker took it over since it was published or sent back."""
        return self._number(h.LOST) or 0

    @cached_property
    def reason(self) -> str:
        """Return why it is dead: our reason, or the broker's, or ``unknown``."""
        return (
            self._text(h.DEATH_REASON)
            or self._text("x-last-death-reason")
            or self._death("reason")
            or "unknown"
        )

    @property
    def exception_type(self) -> str:
        """Return the dotted name of the exception's class, or nothing."""
        return self._text(h.DEATH_EXCEPTION_TYPE)

    @property
    def exception(self) -> str:
        """Return what the exception said, or nothing."""
        return self._text(h.DEATH_EXCEPTION)

    @property
    def traceback(self) -> str:
        """Return the traceback, as much of it as fitted."""
        return self._text(h.DEATH_TRACEBACK)

    @property
    def worker(self) -> str:
        """Return host and pid of the process that gave it up, or nothing."""
        return self._text(h.DEATH_WORKER)

    @property
    def code_version(self) -> str:
        """Return the version of the code that gave it up, or nothing."""
        return self._text(h.DEATH_CODE_VERSION)

    @property
    def correlation_id(self) -> str:
        """Return the id that ties together all that one cause set off, or nothing."""
        return self._text(h.CORRELATION_ID) or str(self.properties.get("correlation_id") or "")

    @cached_property
    def origin(self) -> str:
        """Return the work queue that it died in, or nothing if neither we nor the broker say."""
        return self._text(h.QUEUE) or self._text("x-last-death-queue") or self._death("queue")

    @property
    def published_at(self) -> datetime | None:
        """Return when the message was first published, if known."""
        return self._moment(h.FIRST_PUBLISHED)

    @cached_property
    def failed_at(self) -> datetime | None:
        """Return when it died: by our header, or else in whole seconds by the broker's."""
        ours = self._moment(h.DEATH_FAILED_AT)
        if ours is not None:
            return ours
        theirs = next(iter(self._deaths()), {}).get("time")
        return moment_of(theirs) if isinstance(theirs, datetime) else None

    @cached_property
    def fingerprint(self) -> str:
        """Return the kind of its failure."""
        return fingerprint(self.exception_type or self.reason, self.exception, self.traceback)

    @property
    def is_loop(self) -> bool:
        """Whether it was sent back before and died of the very same."""
        return self._text(h.REDRIVEN_FOR) == self.fingerprint

    @cached_property
    def payload(self) -> Any:
        """Return the decoded JSON body, or ``None``; pickle and the like are never decoded."""
        if str(self.properties.get("content_type") or "application/json") != "application/json":
            return None
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @property
    def arguments(self) -> tuple[list[Any], dict[str, Any]] | None:
        """Return ``args`` and ``kwargs`` of a task message, or ``None``."""
        match self.payload:
            case [list() as args, dict() as kwargs, *_]:
                return args, kwargs
            case _:
                return None

    def timeline(self) -> list[tuple[datetime, str]]:
        """Return what is known of its life, in order."""
        return sorted(self._events(), key=lambda event: event[0])

    def _events(self) -> Iterator[tuple[datetime, str]]:
        for name, text in (
            (h.FIRST_PUBLISHED, "first published"),
            (h.DUE, "due"),
            (h.REDRIVEN_AT, f"sent back for the {_ordinal(self.redrives)} time"),
        ):
            if (moment := self._moment(name)) is not None:
                yield moment, text
        for death in self._deaths():
            if isinstance(death.get("time"), datetime):
                times = death.get("count", 1)
                yield (
                    moment_of(death["time"]),
                    f"left queue {death.get('queue')}: {death.get('reason')} ({times}x)",
                )
        if (failed := self._moment(h.DEATH_FAILED_AT)) is not None:
            yield failed, f"attempt {self.attempt} ended: {self.reason} {self.exception_type}".rstrip()

    def _text(self, name: str) -> str:
        value = self.headers.get(name)
        return value if isinstance(value, str) else ""

    def _number(self, name: str) -> int | None:
        value = self.headers.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    def _moment(self, name: str) -> datetime | None:
        value = self._number(name)
        return from_epoch_ms(value) if value and value < _LATEST_MS else None

    def _deaths(self) -> list[Mapping[str, Any]]:
        deaths = self.headers.get("x-death")
        return [each for each in deaths if isinstance(each, Mapping)] if isinstance(deaths, list) else []

    def _death(self, name: str) -> str:
        """Return what the broker says of the latest death; the newest entry is the first."""
        value = next(iter(self._deaths()), {}).get(name)
        return value if isinstance(value, str) else ""


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
