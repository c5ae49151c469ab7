"""What identifies a message, and which of its lives a delivery belongs to."""

from __future__ import annotations

from typing import NamedTuple


class MessageId(NamedTuple):
    """The identity of a message over all its copies, attempts and redrives.

    ``self.replace(self.si(...))`` keeps task name and id, so the nesting of replacements belongs to it.
    """

    task: str
    id: str
    nesting: int = 0

    def __str__(self) -> str:
        """Return the form in which stores keep it."""
        return f"{self.task}[{self.id}]" + (f"+{self.nesting}" if self.nesting else "")


class Generation(NamedTuple):
    """Which life of a message: how often an operator sent it back, and which attempt this is.

    Generations compare in that order: any attempt after a redrive is later than all before it.
    """

    redrives: int
    attempt: int

    def next_attempt(self) -> Generation:
        """Return the generation of the retry that follows this one."""
        return Generation(self.redrives, self.attempt + 1)


def amqp_message_id(message: MessageId, generation: Generation) -> str:
    """Return the AMQP ``message_id``: ``id.redrives.attempt``; equal for all copies of one publish."""
    return f"{message.id}.{generation.redrives}.{generation.attempt}"
