"""The order in which objects may be created, one after another, with a stop after any of them.

An object comes after whatever it hands messages to: an exchange after its alternate exchange, a queue after
its dead-letter exchange and after its policies, a policy after the exchanges that it names, and an exchange's
bindings after their destinations. So at no moment is there a queue without its policy, or a policy that sends
dead letters to an exchange that is not there. Circles (a retry loop) are cut where they are entered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from unlost.topology.effective import Rules
from unlost.topology.objects import Binding, BrokerObject, Exchange, Policy, Queue

_HANDS_ON = ("dead-letter-exchange", "alternate-exchange")


def in_safe_order(
    objects: Iterable[Exchange | Queue | Binding | Policy], present: Iterable[BrokerObject] = ()
) -> tuple[BrokerObject, ...]:
    """Return objects in an order that is safe to apply and to stop within.

    Args:
        objects: In any order; those without a reason to move keep theirs.
        present: What will be there before.
    """
    return tuple(_Ordering(objects, present).run())


class _Ordering:
    """A depth-first walk along what hands messages to what."""

    def __init__(
        self, objects: Iterable[Exchange | Queue | Binding | Policy], present: Iterable[BrokerObject]
    ) -> None:
        self._objects = tuple(objects)
        self._done: set[tuple[str, str]] = {(each.kind, each.key) for each in present}
        self._out: list[BrokerObject] = []
        self._by_key: dict[tuple[str, str], Exchange | Queue | Policy] = {}
        self._bindings: dict[str, list[Binding]] = defaultdict(list)
        for each in self._objects:
            if isinstance(each, Binding):
                self._bindings[each.source].append(each)
            else:
                self._by_key[each.kind, each.key] = each
        self._rules = Rules(each for each in self._objects if isinstance(each, Policy))

    def run(self) -> list[BrokerObject]:
        """Return the objects in order."""
        for each in self._objects:
            if isinstance(each, Queue):
                self._visit(each)
        for each in self._objects:
            if isinstance(each, Exchange | Policy):
                self._visit(each)
        for each in self._objects:
            if isinstance(each, Binding):
                self._emit(each)
        return self._out

    def _visit(self, each: Exchange | Queue | Policy | None) -> None:
        """Emit an object behind whatever it hands messages to. Deep chains must not exhaust the stack."""
        stack = [(each, False)] if each is not None else []
        entered: set[tuple[str, str]] = set()
        while stack:
            current, left = stack.pop()
            key = (current.kind, current.key)
            if left:
                self._emit(current)
                if isinstance(current, Exchange):
                    for binding in self._bindings[current.name]:
                        if (binding.destination_type, binding.destination) in self._done:
                            self._emit(binding)
                continue
            if key in self._done or key in entered:
                continue
            entered.add(key)
            stack.append((current, True))
            stack.extend((needed, False) for needed in reversed(self._needs(current)))

    def _needs(self, each: Exchange | Queue | Policy) -> list[Exchange | Queue | Policy]:
        if isinstance(each, Policy):
            return self._exchanges(each.definition)
        needed: list[Exchange | Queue | Policy] = list(self._rules.matching(each))
        named = {name.removeprefix("x-"): value for name, value in each.arguments.items()}
        needed += self._exchanges(named)
        if isinstance(each, Exchange):
            needed += [
                found
                for binding in self._bindings[each.name]
                if (found := self._by_key.get((binding.destination_type, binding.destination))) is not None
            ]
        return needed

    def _exchanges(self, settings: object) -> list[Exchange | Queue | Policy]:
        named = settings if isinstance(settings, dict) else {}
        return [
            found
            for key in _HANDS_ON
            if (found := self._by_key.get(("exchange", str(named.get(key))))) is not None
        ]

    def _emit(self, each: BrokerObject) -> None:
        key = (each.kind, each.key)
        if key not in self._done:
            self._done.add(key)
            self._out.append(each)
