"""Real messages to mutate, and the account of what became of each message that was published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.fuzz import Raw, number_of
from tests.support.raw_amqp import open_channel
from tests.support.workers import Bench
from unlost.core import headers as h

#: One message of each shape that Celery and unlost publish: links, chains, groups, payloads, limits.
_PUBLISH = """
from celery import chain, group
trace = m.leaves_trace
m.effect.delay("plain")
m.effect.apply_async(("linked",), link=[m.reports_result.s(), group(trace.si("g1"), trace.si("g2"))])
m.permanent.apply_async(("errbacks",), link_error=trace.si("errback"))
m.parcel.delay(number=1)
m.fails.apply_async(("limits",), time_limit=60, soft_time_limit=50, expires=3600, priority=3)
trace.apply_async(("x" * 2000,), compression="gzip")
trace.apply_async(("stamped",), stamped_headers=["mark"], mark="yes", shadow="other")
chain(m.effect.si("chained"), m.reports_result.s(), trace.si("end"))()
"""


def harvest(shop: Bench) -> list[Raw]:
    """Publish through Celery, and take what that made out of the queue; no worker may be running."""
    shop.call(_PUBLISH)
    found = []
    with open_channel(shop.vhost.amqp_url) as channel:
        while (message := channel.basic_get("t.work", no_ack=True)) is not None:
            properties = {**message.properties}
            headers = properties.pop("application_headers")
            found.append(Raw(body=_bytes(message.body), headers=headers, properties=properties))
    return found


def _bytes(body: bytes | str) -> bytes:
    return body if isinstance(body, bytes) else body.encode()


def _identity(message: Raw) -> str | None:
    headers = message.headers or {}
    if isinstance(headers.get("task"), str) and isinstance(headers.get("id"), str):
        return str(h.message_id_of(headers))
    return None


@dataclass(frozen=True)
class Letter:
    """Where a message was found dead."""

    reason: str
    body: bytes


@dataclass
class Fates:
    """What became of the messages, by their numbers.

    Args:
        shop: Where they were published.
        given: What was published, in the order of its numbers.
    """

    shop: Bench
    given: Sequence[Raw]
    letters: dict[int, list[Letter]] = field(default_factory=dict)
    _causes: list[object] = field(default_factory=list)
    _states: dict[str, str] = field(default_factory=dict)
    _dead: set[str | None] = field(default_factory=set)

    def look(self) -> bool:
        """Take in what there is now; return whether every message has ended and no copy is left."""
        self._take_letters()
        self._dead = {_identity(self.given[number]) for number in self.letters} - {None}
        self._states = {
            row.message: row.state for row in self.shop.rows("select message, state from unlost_messages")
        }
        return not self.missing() and self._is_quiet()

    def missing(self) -> list[int]:
        """Return the numbers of those that have not ended."""
        return [number for number in range(len(self.given)) if self.end_of(number) is None]

    def end_of(self, number: int) -> str | None:
        """Return how a message ended: its letter's reason, or its row's state; ``None`` if it has not."""
        if number in self.letters:
            return self.letters[number][0].reason
        identity = _identity(self.given[number])
        if self._states.get(identity or "") == "done":
            return "done"
        # Its id is another's, so that to the ledger it is a copy of that one.
        return "superseded" if identity in self._dead else None

    def ends(self) -> Counter[str]:
        """Return how many messages ended how."""
        return Counter(self.end_of(number) or "missing" for number in range(len(self.given)))

    def changed(self) -> list[int]:
        """Return the numbers of those whose body is another in their letter."""
        return [
            number
            for number, letters in self.letters.items()
            if any(letter.body != self.given[number].body for letter in letters)
        ]

    def strangers(self) -> list[object]:
        """Return the causes that letters name which were not given, where nothing of that id has ended."""
        ended = {message.partition("[")[2].removesuffix("]") for message in self._states}
        ids = [(self.given[number].headers or {}).get("id") for number in self.letters]
        ended.update(each for each in ids if isinstance(each, str))
        return [cause for cause in self._causes if not isinstance(cause, str) or cause not in ended]

    def _take_letters(self) -> None:
        with open_channel(self.shop.vhost.amqp_url) as channel:
            # py-amqp would decode a letter's body by its own word.
            channel.auto_decode = False
            while (message := channel.basic_get("t.work.dlq")) is not None:
                body = _bytes(message.body)
                headers: Mapping[Any, Any] = message.properties.get("application_headers") or {}
                number = number_of(headers, message.properties, body)
                if number is None:
                    # Errbacks of what no body has run for name their cause as Celery does.
                    self._causes.append(headers.get(h.CAUSATION_ID) or headers.get("parent_id"))
                else:
                    letter = Letter(str(headers.get(h.DEATH_REASON) or ""), body)
                    self.letters.setdefault(number, []).append(letter)
                channel.basic_ack(message.delivery_tag)

    def _is_quiet(self) -> bool:
        with open_channel(self.shop.vhost.amqp_url) as channel:
            return all(
                channel.queue_declare(name, passive=True).message_count == 0
                for name in ("t.work", "t.work.dlq")
            )
