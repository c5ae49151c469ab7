"""What becomes of a circuit, for every store that can change one without anybody coming between."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta

from unlost.core import breaker as rules
from unlost.core.breaker import Breaker, Circuit


class Circuits(ABC):
    """The circuits of a :class:`unlost.core.ports.Throttle`; a subclass brings the change."""

    @abstractmethod
    def _turn(self, name: str, change: Callable[[Circuit, float], Circuit]) -> Circuit:
        """Replace a circuit by what ``change`` makes of it and of the store's time, and return that.

        ``change`` may be asked more than once; the last answer is the one that was written.
        """

    def count(self, breaker: Breaker, *, ok: int, failed: int) -> Circuit:
        """Add the ends of attempts, and return the circuit as it is then: it may have opened."""
        return self._turn(
            breaker.name, lambda circuit, now: rules.counted(circuit, breaker, ok=ok, failed=failed, now=now)
        )

    def probe(self, breaker: Breaker, who: str) -> bool:
        """Take the probe, if it is time for one; at most one worker has it."""
        before: list[Circuit] = []

        def take(circuit: Circuit, now: float) -> Circuit:
            before.append(circuit)
            return rules.probing(circuit, breaker, who, now)

        after = self._turn(breaker.name, take)
        return after.prober == who and after != before[-1]

    def probed(self, breaker: Breaker, who: str, *, ok: bool | None) -> Circuit:
        """Write what came of a probe, unless it was taken over meanwhile."""
        return self._turn(
            breaker.name, lambda circuit, now: rules.probed(circuit, breaker, who, ok=ok, now=now)
        )

    def hold(self, name: str, *, lasts: timedelta, reason: str) -> Circuit:
        """Stop what depends on ``name``, for so long."""
        return self._turn(name, lambda circuit, now: rules.held(circuit, lasts=lasts, reason=reason, now=now))

    def release(self, name: str) -> Circuit:
        """Let one message try, and then, if it succeeds, all."""
        return self._turn(name, rules.released)
