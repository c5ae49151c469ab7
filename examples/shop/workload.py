"""The shop under a chaos run: orders that promise three effects each, read from the database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any

from shop.orders import STEPS, Order, read_effects
from unlost.chaos.workload import Workload

_TASKS = dict(zip(("shop.charge_card", "shop.reserve_stock", "shop.send_receipt"), STEPS, strict=True))


@dataclass(frozen=True, kw_only=True)
class Orders(Workload):
    """Orders on the reliable shop, or on the plain one.

    Args:
        plain: Whether to use plain Celery.
        work_ms: How long each step works before its effect.
        linger_ms: How long each step goes on after its effect.
        declined_every: Every so many orders the card is declined; 0 for never.
        flaky_every: Every so many orders the bank answers only the second time; 0 for never.
    """

    plain: bool = False
    work_ms: int = 10
    linger_ms: int = 0
    declined_every: int = 0
    flaky_every: int = 0

    def publish(self, number: int) -> None:
        """Place order ``number``."""
        self._shop.place(self._order(number))

    def _order(self, number: int) -> Order:
        return Order(
            order_id=number,
            work=timedelta(milliseconds=self.work_ms),
            linger=timedelta(milliseconds=self.linger_ms),
            declined=_is_nth(number, self.declined_every),
            flaky=_is_nth(number, self.flaky_every),
        )

    def promises(self, number: int) -> list[str]:
        """Return the three effects of an order."""
        return [f"{number}/{step}" for step in STEPS]

    def value_of(self, task: str, _args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """Return the effect that a task works on."""
        return f"{kwargs['order_id']}/{_TASKS[task]}" if task in _TASKS else None

    def values_of_letter(self, task: str, _args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
        """Return the effects that wait in a letter: its own and those behind it in the chain."""
        if task not in _TASKS:
            return []
        waiting = STEPS[STEPS.index(_TASKS[task]) :]
        return [f"{kwargs['order_id']}/{step}" for step in waiting]

    def effects(self) -> Iterator[tuple[str, int]]:
        """Return all effects."""
        for order_id, step, time_ns in read_effects(self._shop.engine):
            yield f"{order_id}/{step}", time_ns

    @property
    def _shop(self) -> Any:
        return import_module("shop.plain" if self.plain else "shop.app")


@dataclass(frozen=True, kw_only=True)
class Reservations(Workload):
    """Orders of which only the stock is reserved: one message, one effect, for long runs.

    Args:
        work_ms: How long each works before its effect.
    """

    work_ms: int = 5

    def publish(self, number: int) -> None:
        """Reserve the goods of order ``number``."""
        import_module("shop.app").reserve_stock.delay(**self._order(number).model_dump(mode="json"))

    def publish_many(self, numbers: Sequence[int]) -> None:
        """Reserve the goods of some orders."""
        import_module("shop.app").reserve_stock.apply_many(map(self._order, numbers)).raise_for_problems()

    def _order(self, number: int) -> Order:
        return Order(order_id=number, work=timedelta(milliseconds=self.work_ms))

    def value_of(self, task: str, _args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """Return the order that a task reserves for."""
        return str(kwargs["order_id"]) if task == "shop.reserve_stock" else None

    def effects(self) -> Iterator[tuple[str, int]]:
        """Return all reservations."""
        for order_id, _, time_ns in read_effects(import_module("shop.app").engine):
            yield str(order_id), time_ns


def _is_nth(number: int, every: int) -> bool:
    return every > 0 and number % every == every - 1
