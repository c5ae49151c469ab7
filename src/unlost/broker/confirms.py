"""Delivery tags of a channel in confirm mode, matched to what was published under each.

A broker confirms in any order and several at once ("multiple"), so a confirm means nothing without its tag
(https://www.rabbitmq.com/docs/confirms#when-publishes-are-confirmed). Pure bookkeeping, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class OutOfStep(Exception):
    """The broker speaks of a publish that is not outstanding: nothing on that channel can be believed."""


class Unconfirmed(Generic[T]):
    """What was published on one channel and not confirmed yet, by delivery tag, oldest first."""

    def __init__(self) -> None:
        self._by_tag: dict[int, T] = {}
        self._oldest = 1
        self._next = 1

    def __len__(self) -> int:
        return len(self._by_tag)

    def __iter__(self) -> Iterator[T]:
        return iter(self._by_tag.values())

    def sent(self, item: T) -> None:
        """Note the next publish; the broker counts them from 1 for each channel."""
        self._by_tag[self._next] = item
        self._next += 1

    def oldest(self) -> T:
        """Return what waits for the longest time.

        Raises:
            LookupError: Nothing does.
        """
        if not self._by_tag:
            raise LookupError("nothing is outstanding")
        while self._oldest not in self._by_tag:
            self._oldest += 1
        return self._by_tag[self._oldest]

    def confirmed(self, tag: int, *, multiple: bool) -> list[T]:
        """Take out what a confirm is about: the tag, or all that are outstanding up to it.

        Args:
            tag: The broker's delivery tag; 0 together with ``multiple`` means all (AMQP 0-9-1, basic.ack).
            multiple: Whether those before it are meant, too.

        Raises:
            OutOfStep: The tag is not outstanding, or was never given.
        """
        if not multiple:
            try:
                return [self._by_tag.pop(tag)]
            except KeyError:
                raise OutOfStep(f"delivery tag {tag} is not outstanding") from None
        last = tag or self._next - 1
        if last >= self._next:
            raise OutOfStep(f"delivery tag {tag} was never given")
        found = [self._by_tag.pop(each) for each in range(self._oldest, last + 1) if each in self._by_tag]
        self._oldest = max(self._oldest, last + 1)
        return found
