"""Letters on their way, in the order in which they were taken, until each is known to be safe or not."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Any

from unlost.core.message import Outgoing
from unlost.deadletter.letter import DeadLetter


class Fate(Enum):
    """What is known of a letter on its way."""

    OPEN = "open"
    SAFE = "safe"
    UNSAFE = "unsafe"


@dataclass(eq=False, slots=True)
class Item:
    """A letter on its way; ``twin_of`` is the one that carries the message for both."""

    held: Any
    outgoing: Outgoing | None = None
    twin_of: Item | None = None
    own: Fate = Fate.OPEN

    @property
    def fate(self) -> Fate:
        """Return what is known; of a twin, what is known of the other."""
        return self.own if self.twin_of is None else self.twin_of.own


class Transit:
    """A queue of letters of which only the front may leave: what is in front of an open one.

    So the letters that leave are always all that were taken up to some point, and the broker can be told to
    forget them in one word.
    """

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._sending: deque[Item] = deque()
        self._first: dict[tuple[str, int], Item] = {}
        self.only_acks = 0

    def send(self, held: Any, outgoing: Outgoing) -> bool:
        """Take a letter in; false if another one on its way carries the same message."""
        letter: DeadLetter = held.letter
        item = Item(held, outgoing)
        if letter.identity is not None:
            first = self._first.setdefault((letter.identity, letter.redrives), item)
            if first is not item:
                self._items.append(Item(held, twin_of=first))
                self.only_acks += 1
                return False
        self._items.append(item)
        self._sending.append(item)
        return True

    def carries(self, identity: str | None, redrives: int) -> bool:
        """Whether a letter of this message and redrive number is on its way."""
        return identity is not None and (identity, redrives) in self._first

    def only_ack(self, held: Any) -> None:
        """Take in a letter that is safe already."""
        self._items.append(Item(held, own=Fate.SAFE))
        self.only_acks += 1

    def settle(self, *, safe: bool) -> Item:
        """Note what became of the first letter that is still being sent, and return it."""
        item = self._sending.popleft()
        item.own = Fate.SAFE if safe else Fate.UNSAFE
        return item

    def leaving(self) -> list[Item]:
        """Take out the letters at the front whose fate is known."""
        out: list[Item] = []
        while self._items and self._items[0].fate is not Fate.OPEN:
            item = self._items.popleft()
            out.append(item)
            if item.outgoing is None:
                self.only_acks -= 1
            elif (ident := item.held.letter.identity) is not None:
                self._first.pop((ident, item.held.letter.redrives), None)
        return out
