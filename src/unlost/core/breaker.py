"""When a queue whose dependency fails pauses, and how it finds out that it may go on.

===========  =========================================================  ==================================
circuit      what the workers do                                        what comes next
===========  =========================================================  ==================================
``closed``   consume                                                    ``open``, when enough attempts fail
``open``     nothing: messages stay in the broker, attempts unburnt     ``probing``, after the pause
``probing``  one worker runs one message                                ``closed`` if it succeeds, else
                                                                        ``open``; also when its worker dies
``held``     nothing: an operator said so                               ``probing``, when the time is over
===========  =========================================================  ==================================

All functions are pure. The circuit is one row that all workers share; each change of it is a transaction
over the row as it is at that moment, so that two workers never probe at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum

from unlost.errors import ConfigurationError, Permanent, RetryLater


class CircuitState(StrEnum):
    """Whether messages flow."""

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"
    HELD = "held"


@dataclass(frozen=True, kw_only=True)
class Breaker:
    """When to stop consuming for a dependency; tasks that name the same one share its circuit.

    Args:
        name: Of the dependency, the same in all workers.
        failures: The share of attempts that must fail, above 0, at most 1.
        at_least: So many attempts in the window before any judgement; so many failures in a row are enough.
        window: Over how long attempts are counted.
        pause: How long nothing is tried; then one message is, and after each failure again.
        probe_patience: After so long without an answer another worker may probe: the first may be dead.
        on: Exceptions that speak against the dependency.
        never: Exceptions that do not, even where ``on`` names a base of theirs. ``Permanent`` and
            ``RetryLater`` never do. A time limit, soft or hard, always does.

    Raises:
        ConfigurationError: A value is out of range.
    """

    name: str
    failures: float = 0.5
    at_least: int = 10
    window: timedelta = timedelta(seconds=30)
    pause: timedelta = timedelta(seconds=2)
    probe_patience: timedelta = timedelta(seconds=30)
    on: tuple[type[BaseException], ...] = (Exception,)
    never: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigurationError("Breaker(name=...) is empty: name the dependency")
        if not 0 < self.failures <= 1 or self.at_least < 1:
            raise ConfigurationError(
                f"Breaker({self.name!r}): failures={self.failures!r} must be above 0 and at most 1, and "
                f"at_least={self.at_least!r} at least 1"
            )
        for name in ("window", "pause", "probe_patience"):
            if getattr(self, name) <= timedelta(0):
                raise ConfigurationError(f"Breaker({self.name!r}): {name} must be longer than zero")

    def counts(self, exception: BaseException) -> bool:
        """Whether an exception of a body speaks against the dependency."""
        return isinstance(exception, self.on) and not isinstance(
            exception, (Permanent, RetryLater, *self.never)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """What all workers know of one dependency; moments are seconds of the store's clock.

    Attributes:
        state: Whether messages flow.
        until: ``open`` and ``held``: when it may be probed; ``probing``: until when the prober has time.
        since: When the state began.
        counted_since: When the present half of the window began.
        ok: Attempts that succeeded in the present half.
        failed: Attempts that failed in the present half.
        ok_before: Of the half before.
        failed_before: Of the half before.
        streak: Attempts that failed since the last that succeeded, no longer ago than the window.
        prober: Who probes.
        reason: Why it is open or held, for people.
        trips: How often it has opened.
    """

    state: CircuitState = CircuitState.CLOSED
    until: float = 0.0
    since: float = 0.0
    counted_since: float = 0.0
    ok: int = 0
    failed: int = 0
    ok_before: int = 0
    failed_before: int = 0
    streak: int = 0
    prober: str | None = None
    reason: str = ""
    trips: int = 0

    @property
    def flows(self) -> bool:
        """Whether workers consume as usual."""
        return self.state is CircuitState.CLOSED


def counted(circuit: Circuit, breaker: Breaker, *, ok: int, failed: int, now: float) -> Circuit:
    """Return the circuit after attempts ended; too many failures open it.

    Too many are the breaker's share of the window, and ``at_least`` in a row: after a busy half minute an
    outage would be half of the window only when as many attempts have failed as went well before.

    What began before it opened says nothing new: unless it is closed, nothing is counted.
    """
    if not circuit.flows:
        return circuit
    half = _rotated(circuit, breaker.window.total_seconds() / 2, now)
    # Of attempts that are counted together nobody knows which ended last: a success counts as the last.
    streak = 0 if ok else half.streak + failed
    half = replace(half, ok=half.ok + ok, failed=half.failed + failed, streak=streak)
    bad = half.failed + half.failed_before
    tried = bad + half.ok + half.ok_before
    if failed and streak >= breaker.at_least:
        return _opened(half, breaker, f"the last {streak} attempts failed", now)
    if failed and tried >= breaker.at_least and bad >= breaker.failures * tried:
        return _opened(half, breaker, f"{bad} of {tried} attempts failed", now)
    return half


def _rotated(circuit: Circuit, half: float, now: float) -> Circuit:
    """Begin another half of the window when the present one is over; what is older is forgotten."""
    age = now - circuit.counted_since
    if age < half:
        return circuit
    recent = age < 2 * half
    return replace(
        circuit,
        counted_since=now,
        ok=0,
        failed=0,
        ok_before=circuit.ok if recent else 0,
        failed_before=circuit.failed if recent else 0,
        streak=circuit.streak if recent else 0,
    )


def _opened(circuit: Circuit, breaker: Breaker, reason: str, now: float) -> Circuit:
    return Circuit(
        state=CircuitState.OPEN,
        until=now + breaker.pause.total_seconds(),
        since=now,
        reason=reason,
        trips=circuit.trips + 1,
    )


def may_probe(circuit: Circuit, now: float) -> bool:
    """Whether the pause is over, an operator's hold has ended, or a prober has not answered in time."""
    return not circuit.flows and now >= circuit.until


def probing(circuit: Circuit, breaker: Breaker, who: str, now: float) -> Circuit:
    """Return the circuit with ``who`` to probe it; as it is when it may not be probed."""
    if not may_probe(circuit, now):
        return circuit
    return replace(
        circuit,
        state=CircuitState.PROBING,
        until=now + breaker.probe_patience.total_seconds(),
        prober=who,
    )


def probed(circuit: Circuit, breaker: Breaker, who: str, *, ok: bool | None, now: float) -> Circuit:
    """Return the circuit after a probe; as it is when another has taken over, or an operator holds it.

    Args:
        circuit: As it is.
        breaker: Its rules.
        who: The prober.
        ok: Whether the message succeeded; ``None`` when there was none, or it told nothing.
        now: The store's clock, seconds.
    """
    if circuit.state is not CircuitState.PROBING or circuit.prober != who:
        return circuit
    if ok:
        return Circuit(since=now, counted_since=now, trips=circuit.trips)
    return replace(
        circuit,
        state=CircuitState.OPEN,
        until=now + breaker.pause.total_seconds(),
        prober=None,
    )


def held(circuit: Circuit, *, lasts: timedelta, reason: str, now: float) -> Circuit:
    """Return the circuit after an operator stopped it, for a bounded time."""
    return Circuit(
        state=CircuitState.HELD,
        until=now + lasts.total_seconds(),
        since=now,
        reason=reason,
        trips=circuit.trips,
    )


def released(circuit: Circuit, now: float) -> Circuit:
    """Return the circuit after an operator let it go on: one message is tried at once, then all."""
    if circuit.flows:
        return circuit
    return replace(circuit, state=CircuitState.OPEN, until=now, prober=None)
