"""Breakers and limits over stores that keep a text for each name and can compare and set it.

A circuit is one JSON document, and so is a limit with the slots of its workers. What a worker decides is
written only if the document is still the one that it decided on; otherwise it decides anew. The rules are
those of :mod:`unlost.core.breaker` and :mod:`unlost.core.limits`.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import timedelta
from typing import Any, TypeVar

from unlost.core.breaker import Circuit, CircuitState
from unlost.core.limits import Grant, Limit, granted, refunded
from unlost.errors import StoreUnavailable
from unlost.throttle.circuits import Circuits

T = TypeVar("T")

_CIRCUIT = "circuit:"
_LIMIT = "limit:"

#: Somebody's write succeeds each time that another's does not, so only a crowd gets this far.
_TRIES = 200

_UNUSED: dict[str, Any] = {"paid_until": 0.0, "slots": {}}


class DocumentThrottle(Circuits):
    """A :class:`unlost.core.ports.Throttle` on compare-and-set; a subclass brings the three operations."""

    @abstractmethod
    def _get(self, key: str) -> tuple[str | None, float]:
        """Return a document, if there is one, and the store's time in seconds."""

    @abstractmethod
    def _swap(self, key: str, before: str | None, after: str) -> bool:
        """Write a document if the present one is ``before``; ``None`` for none."""

    @abstractmethod
    def _keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin so."""

    def create_schema(self) -> None:
        """Do nothing: documents need no tables."""

    def circuit(self, name: str) -> Circuit:
        """Return a circuit; closed when nobody has ever counted anything."""
        return _to_circuit(self._get(_CIRCUIT + name)[0])

    def circuits(self) -> dict[str, tuple[Circuit, float]]:
        """Return every circuit by name, and how many seconds from now its ``until`` is."""
        found = {}
        for key in sorted(self._keys(_CIRCUIT)):
            text, now = self._get(key)
            circuit = _to_circuit(text)
            found[key.removeprefix(_CIRCUIT)] = circuit, circuit.until - now
        return found

    def permits(self, limit: Limit, worker: str, *, wanted: int, running: int, lease: timedelta) -> Grant:
        """Give a worker permits to start messages, and note how many it runs then."""

        def give(text: str | None, now: float) -> tuple[str, Grant]:
            state = json.loads(text) if text else _UNUSED
            others = {
                name: slot
                for name, slot in state["slots"].items()
                if name != worker and slot["expires"] > now
            }
            taken = running + sum(slot["taken"] for slot in others.values())
            given = granted(limit, wanted=wanted, taken=taken, paid_until=state["paid_until"], now=now)
            if (runs := running + given.permits) and limit.concurrent is not None:
                others[worker] = {"taken": runs, "expires": now + lease.total_seconds()}
            return json.dumps({"paid_until": given.paid_until, "slots": others}), given

        return self._change(_LIMIT + limit.name, give)

    def refund(self, limit: Limit, unused: int) -> None:
        """Take back permits that no message was found for."""

        def take_back(text: str | None, _: float) -> tuple[str, None]:
            state = json.loads(text) if text else _UNUSED
            paid_until = refunded(limit, unused=unused, paid_until=state["paid_until"])
            return json.dumps({**state, "paid_until": paid_until}), None

        self._change(_LIMIT + limit.name, take_back)

    def _turn(self, name: str, change: Callable[[Circuit, float], Circuit]) -> Circuit:
        def turn(text: str | None, now: float) -> tuple[str | None, Circuit]:
            before = _to_circuit(text)
            after = change(before, now)
            return text if after == before else json.dumps(asdict(after)), after

        return self._change(_CIRCUIT + name, turn)

    def _change(self, key: str, change: Callable[[str | None, float], tuple[str | None, T]]) -> T:
        """Replace a document by what ``change`` makes of it and of the time, and return its answer.

        A crash before the write leaves the document as it was.

        Raises:
            StoreUnavailable: The store cannot be asked, or others were faster every time.
        """
        for _ in range(_TRIES):
            before, now = self._get(key)
            after, answer = change(before, now)
            if after is None or after == before or self._swap(key, before, after):
                return answer
        raise StoreUnavailable(f"{key}: {_TRIES} times another worker changed it first")


def _to_circuit(text: str | None) -> Circuit:
    if text is None:
        return Circuit()
    # A later release may have written more.
    fields = {name: value for name, value in json.loads(text).items() if name in Circuit.__dataclass_fields__}
    return Circuit(**{**fields, "state": CircuitState(fields["state"])})
