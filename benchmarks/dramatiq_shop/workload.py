"""The shop's orders, sent by Dramatiq."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from shop.workload import Orders


@dataclass(frozen=True, kw_only=True)
class DramatiqOrders(Orders):
    """Orders on the shop that is built with Dramatiq."""

    def value_of(self, _task: str, _args: Sequence[Any], _kwargs: Mapping[str, Any]) -> str | None:
        """Return nothing: Dramatiq's processes record by themselves."""
        return None

    @property
    def _shop(self) -> Any:
        return import_module("benchmarks.dramatiq_shop.shop")
