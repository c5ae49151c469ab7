"""The shared state of breakers and limits of one process, for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from unlost.throttle.documents import DocumentThrottle


class MemoryThrottle(DocumentThrottle):
    """Circuits and limits that go with the process.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._documents: dict[str, str] = {}
        self._lock = threading.Lock()

    def _get(self, key: str) -> tuple[str | None, float]:
        with self._lock:
            return self._documents.get(key), self._clock()

    def _swap(self, key: str, before: str | None, after: str) -> bool:
        with self._lock:
            if self._documents.get(key) != before:
                return False
            self._documents[key] = after
            return True

    def _keys(self, prefix: str) -> Iterator[str]:
        with self._lock:
            return iter([key for key in self._documents if key.startswith(prefix)])
