"""Every error that unlost raises.

::

    UnlostError
    ├── ConfigurationError      settings that contradict each other, or are missing
    │   └── TopologyError       a topology that is wrong, or that the broker does not have
    ├── BrokerError             something between us and RabbitMQ
    │   ├── BrokerUnavailable   no connection within the patience
    │   ├── AccessRefused       wrong user, password, vhost or permission
    │   ├── DeclarationConflict an object exists with other immutable properties
    │   └── PublishError        a message that is not known to be safe
    │       ├── Unroutable      returned: no queue is bound, it is stored nowhere
    │       ├── Refused         nacked or refused before it was sent; it is not stored by the one who refused
    │       │   └── InvalidMessage  the broker cannot take it as it is; trying again cannot help
    │       ├── ConfirmUnknown  no confirm came: it may be stored or not
    │       └── PublishErrors   some of many messages; names each
    ├── StoreError              the store of ledger and effects
    │   ├── StoreUnavailable    it cannot be reached or is locked for too long
    │   ├── ClaimLost           a payload that a message refers to is gone or damaged
    │   └── LeaseLost           somebody else holds the message now; nothing of ours was written
    ├── KeyConflict             an idempotency key was used with another payload
    ├── UniqueConflict          a message for the same unique work is under way; nothing was sent
    ├── DeadLetterError         dead letters cannot be read or sent on as asked; none was lost
    │   ├── QueueMissing        the queue is not there, or vanished meanwhile
    │   └── JournalError        a journal that cannot be read, is another's, or is in use
    └── ChaosError
        ├── HarnessError        the test rig failed; says nothing about the system under test
        └── Anomaly             a checker found the history invalid

Two more are raised by task code to steer settlement and are not failures of ours:
:class:`Permanent` (do not retry) and :class:`RetryLater` (retry after a given delay).

Publish errors that reach Celery's callers are also ``kombu.exceptions.OperationalError``;
that is mixed in where kombu is known (``unlost.broker.errors``), because this module imports nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any


class UnlostError(Exception):
    """Root of everything that unlost raises on purpose."""


class ConfigurationError(UnlostError):
    """A setting is missing or contradicts another; the message names both and the way out."""


class TopologyError(ConfigurationError):
    """The declared topology is wrong, or the broker does not have it."""


class BrokerError(UnlostError):
    """Something went wrong between this process and RabbitMQ."""


class BrokerUnavailable(BrokerError):
    """No connection to the broker could be made within the patience."""


class AccessRefused(BrokerError):
    """The broker refused the user, the password, the vhost or a permission."""


class DeclarationConflict(BrokerError):
    """An object exists on the broker with other properties than declared."""


class PublishError(BrokerError):
    """A message that is not known to be safe with the broker."""


class Unroutable(PublishError):
    """The broker returned the message: no queue is bound for it and it is stored nowhere."""


class Refused(PublishError):
    """A queue refused the message, or it was refused before a byte was sent."""


class InvalidMessage(Refused):
    """The broker cannot take the message as it is; trying again cannot help."""


class ConfirmUnknown(PublishError):
    """No confirm arrived: the message may be stored or not; publish it again under the same id."""


class PublishErrors(PublishError):
    """Some messages of many are not known to be safe; all others are confirmed.

    Args:
        text: How many, and what is wrong with the first of them.
        problems: One :class:`unlost.broker.window.Published` for each, in the order of publishing.
    """

    def __init__(self, text: str, problems: Sequence[Any]) -> None:
        super().__init__(text)
        self.problems = tuple(problems)

    def __reduce__(self) -> Any:
        return type(self), (str(self), self.problems)

    @property
    def failed(self) -> tuple[Any, ...]:
        """Return those that are certainly not stored."""
        return tuple(each for each in self.problems if each.outcome == "failed")

    @property
    def unknown(self) -> tuple[Any, ...]:
        """Return those that may be stored or not; the ``error`` of each has a ``resend()``."""
        return tuple(each for each in self.problems if each.outcome == "unknown")


class StoreError(UnlostError):
    """The store of ledger and effects failed."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, or stayed locked for longer than the patience."""


class ClaimLost(StoreError):
    """The payload that a message refers to is gone from its store, or is not what was stored."""


class LeaseLost(StoreError):
    """Somebody else holds the message now; nothing of this attempt was written."""


class KeyConflict(UnlostError):
    """The key was used with another payload; a message that is found so is dead-lettered."""


class UniqueConflict(UnlostError):
    """A message of a unique task is not published: another is under way for the same work.

    Args:
        text: Why.
        occupant: The other message (:class:`unlost.core.ids.MessageId`), or ``None`` while another publisher
            is at it.
    """

    def __init__(self, text: str, occupant: Any) -> None:
        super().__init__(text)
        self.occupant = occupant

    def __reduce__(self) -> Any:
        return type(self), (str(self), self.occupant)


class DeadLetterError(UnlostError):
    """Dead letters could not be read or sent on as asked; what is not confirmed elsewhere is where it was."""


class QueueMissing(DeadLetterError):
    """The queue of dead letters does not exist, or was deleted while it was read."""


class JournalError(DeadLetterError):
    """A journal cannot be read, belongs to another queue, or is being written by another process."""


class ChaosError(UnlostError):
    """Root of what the chaos kit raises."""


class HarnessError(ChaosError):
    """The test rig itself failed, which says nothing about the system under test."""


class Anomaly(ChaosError):
    """A checker found the history invalid."""


class Permanent(Exception):
    """Raised by task code: retrying cannot help, dead-letter the message now."""


class RetryLater(Exception):
    """Raised by task code: try again after a delay that the task knows better than the policy.

    Args:
        reason: Why, for the log and the history.
        after: The delay before the next attempt; ``None`` leaves it to the retry policy.
    """

    def __init__(self, reason: str = "", *, after: timedelta | None = None) -> None:
        super().__init__(reason)
        self.after = after
