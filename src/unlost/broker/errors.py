"""Publish errors as Celery's callers know them: each is also a ``kombu.exceptions.OperationalError``.

Celery's tracer and users' code catch ``OperationalError`` around ``delay()``; code that knows unlost
catches the classes of :mod:`unlost.errors`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from kombu.exceptions import EncodeError, OperationalError

from unlost import errors
from unlost.core.message import Outgoing


class BrokerUnavailable(errors.BrokerUnavailable, OperationalError):
    """No connection within the patience; nothing was sent."""


class AccessRefused(errors.AccessRefused, OperationalError):
    """The broker refused user, password, vhost or permission; nothing is stored."""


class Unroutable(errors.Unroutable, OperationalError):
    """The message was returned, or its exchange does not exist; it is stored nowhere."""


class Refused(errors.Refused, OperationalError):
    """The message was nacked, or refused before it was sent."""


class InvalidMessage(errors.InvalidMessage, OperationalError):
    """The broker cannot take the message as it is; nothing is stored, and trying again cannot help."""


class NotSerialisable(InvalidMessage, EncodeError):
    """JSON has no form for an argument; nothing was sent. Also a ``kombu.exceptions.EncodeError``."""

    def __init__(self, task: str, error: Exception) -> None:
        super().__init__(
            f"{task}: JSON has no form for one of its arguments ({error}), so it was not sent. Pass an id, a "
            "string or a number for it, or give the task a payload model, which knows how to write it"
        )
        self.task = task
        self.error = error

    def __reduce__(self) -> Any:
        return type(self), (self.task, self.error)


class PublishErrors(errors.PublishErrors, OperationalError):
    """Some messages of many are not known to be safe; the others are confirmed."""


class ConfirmUnknown(errors.ConfirmUnknown, OperationalError):
    """No confirm came. ``outgoing`` is the message as it was sent, for another try under the same id."""

    def __init__(self, text: str, outgoing: Outgoing) -> None:
        super().__init__(text)
        self.outgoing = outgoing
        self._publish: Callable[..., None] | None = None

    def __reduce__(self) -> Any:
        return type(self), (str(self), self.outgoing)

    def sent_by(self, publish: Callable[..., None]) -> ConfirmUnknown:
        """Remember how to send the message again, and return this error."""
        self._publish = publish
        return self

    def resend(self, *, patience: timedelta | None = None) -> None:
        """Publish the message again under the same id, and return when it is confirmed.

        If both copies are stored, the ledger absorbs one. (Calling ``delay()`` again makes a second task.)

        Args:
            patience: How long to go on trying; the publisher's own when not given.

        Raises:
            ConfirmUnknown: It is still unknown, whatever this attempt said: that proves nothing about the
                first copy. The attempt's own error is the cause.
            RuntimeError: The error came from another process.

        Crash safety:
            A crash before the return leaves the message stored or not, as before.
        """
        if self._publish is None:
            raise RuntimeError(
                "this error came from another process: publish its .outgoing with a Publisher of this one"
            )
        try:
            self._publish(self.outgoing, patience=patience)
        except ConfirmUnknown:
            raise
        except errors.BrokerError as exc:
            raise ConfirmUnknown(f"still unknown: {self}", self.outgoing).sent_by(self._publish) from exc
