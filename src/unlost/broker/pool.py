"""The connections that a publisher has open and does not use at the moment."""

from __future__ import annotations

import os
import threading
from datetime import timedelta

from kombu import Connection

from unlost.broker.connection import where
from unlost.broker.errors import BrokerUnavailable
from unlost.broker.link import Link


class Pool:
    """Idle links of this process. Links inherited over a fork are kept aside, never closed.

    Closing one, or letting it be collected, would shut down the socket that the parent still uses.

    Args:
        source: Where to connect; several hosts are tried in turn.
        patience: How long one read or write of a link may take.
    """

    def __init__(self, source: Connection, patience: timedelta) -> None:
        self._source = source
        self._patience = patience
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._idle: list[Link] = []
        self._inherited: list[Link] = []

    def __repr__(self) -> str:
        return where(self._source)

    def borrow(self, connect_timeout: timedelta) -> Link:
        """Return an idle link, or a new one; never waits for another thread.

        Raises:
            AccessRefused: Wrong user, password or vhost.
            BrokerUnavailable: Nobody answered in time; the next host is tried next time.
        """
        link = self._take()
        if link is not None:
            return link
        place = where(self._source)
        try:
            return Link(self._source, connect_timeout, self._patience)
        except BrokerUnavailable:
            self.avoid(place)
            raise

    def give_back(self, link: Link) -> None:
        """Take back a link that is in no doubt."""
        with self._lock:
            self._idle.append(link)

    def discard(self, link: Link) -> None:
        """Close a link, unless it is the parent's."""
        if link.pid == os.getpid():
            link.close()
        else:
            self._inherited.append(link)

    def avoid(self, place: str) -> None:
        """Have the next links go to another host than this one, if there are several.

        A node that is cut off from its cluster lets clients in and confirms nothing.
        """
        with self._lock:
            # Another thread may have been there first.
            if where(self._source) != place:
                return
            self._source.maybe_switch_next()
            if where(self._source) == place:
                return
            given_up = [link for link in self._idle if link.place == place]
            self._idle = [link for link in self._idle if link.place != place]
        for link in given_up:
            self.discard(link)

    def close(self) -> None:
        """Close the idle links."""
        while link := self._take():
            link.close()

    def _take(self) -> Link | None:
        self._leave_the_parent()
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _leave_the_parent(self) -> None:
        if self._pid == os.getpid():
            return
        # The parent's lock may have been held by another thread at the fork: make a new one.
        self._lock = threading.Lock()
        self._inherited.extend(self._idle)
        self._idle = []
        # Last: from here on another thread of this process may take from the pool.
        self._pid = os.getpid()
