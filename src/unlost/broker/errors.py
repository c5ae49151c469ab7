"""Publish errors as Celery's callers know them: each is also a ``kombu.exceptions.OperationalError``.

Celery's tracer and users' code catch ``OperationalError`` around ``delay()``; code that knows unlost
catches the classes of :mod:`unlost.errors`.
"""

from __future__ import annotations

from kombu.exceptions import OperationalError

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


class ConfirmUnknown(errors.ConfirmUnknown, OperationalError):
    """No confirm came. ``outgoing`` is the message as it was sent, for another try under the same id."""

    def __init__(self, text: str, outgoing: Outgoing) -> None:
        super().__init__(text)
        self.outgoing = outgoing
