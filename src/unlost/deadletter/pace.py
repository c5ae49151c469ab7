"""How fast letters are sent back, and when it is to stop: pure decisions over counts and times."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The speed of a redrive and its limits.

    Attributes:
        canary: Send so many first and wait for what becomes of them; 0 for none.
        rate: Letters a second after that; ``None`` for as fast as it goes.
        window: Letters that are published before their outcome is looked at.
        max_failures: Stop when a larger share than this of the last window, or of the canary, died again.
        watch: How long to wait for the canary's outcome.
    """

    canary: int = 10
    rate: float | None = None
    window: int = 1000
    max_failures: float = 0.1
    watch: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        if self.canary < 0 or self.window < 1 or not 0 <= self.max_failures <= 1:
            raise ValueError("canary must be ≥ 0, window ≥ 1 and max_failures between 0 and 1")
        if self.rate is not None and self.rate <= 0:
            raise ValueError("rate must be above 0 letters a second")

    @property
    def batch(self) -> int:
        """Return how many letters go out together: no more than a window, nor than a second's worth."""
        return self.window if self.rate is None else max(1, min(self.window, int(self.rate)))

    def pause(self, sent: int, elapsed: float) -> float:
        """Return how many seconds to wait before the next batch.

        Args:
            sent: Letters sent since the pace began.
            elapsed: Seconds since then.
        """
        return 0.0 if self.rate is None else max(0.0, sent / self.rate - elapsed)

    def is_broken(self, failed: int, sent: int) -> bool:
        """Whether too many of ``sent`` died again."""
        return failed > 0 and failed > self.max_failures * sent


@dataclass
class Recent:
    """Failures among the letters sent last, about a window of them."""

    window: int
    _batches: deque[tuple[int, int]] = field(default_factory=deque)
    sent: int = 0
    failed: int = 0

    def add(self, sent: int, failed: int) -> None:
        """Count a batch, and how many came back while it was sent; forget what is older than a window."""
        self._batches.append((sent, failed))
        self.sent += sent
        self.failed += failed
        while self.sent - self._batches[0][0] >= self.window:
            old_sent, old_failed = self._batches.popleft()
            self.sent -= old_sent
            self.failed -= old_failed
