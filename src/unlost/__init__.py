"""unlost: a reliability framework for Celery on RabbitMQ.

The names below load on first use, so that ``import unlost.topology`` and the pytest plugin do not pay
for Celery.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unlost.config import Settings as Settings
    from unlost.config import Signing as Signing
    from unlost.core.breaker import Breaker as Breaker
    from unlost.core.limits import Limit as Limit
    from unlost.core.retry import RetryPolicy as RetryPolicy
    from unlost.errors import Permanent as Permanent
    from unlost.errors import RetryLater as RetryLater
    from unlost.tasks.install import install as install
    from unlost.tasks.publishing import publishing as publishing
    from unlost.tasks.task import ReliableTask as ReliableTask
    from unlost.topology.model import Topology as Topology
else:

    def __getattr__(name: str) -> object:
        """Import a public name from the module that defines it."""
        from importlib import import_module

        homes = {
            "Breaker": "unlost.core.breaker",
            "Limit": "unlost.core.limits",
            "Permanent": "unlost.errors",
            "ReliableTask": "unlost.tasks.task",
            "RetryLater": "unlost.errors",
            "RetryPolicy": "unlost.core.retry",
            "Settings": "unlost.config",
            "Signing": "unlost.config",
            "Topology": "unlost.topology.model",
            "install": "unlost.tasks.install",
            "publishing": "unlost.tasks.publishing",
        }
        try:
            home = homes[name]
        except KeyError:
            raise AttributeError(f"module 'unlost' has no attribute {name!r}") from None
        value = getattr(import_module(home), name)
        globals()[name] = value
        return value


__all__ = [
    "Breaker",
    "Limit",
    "Permanent",
    "ReliableTask",
    "RetryLater",
    "RetryPolicy",
    "Settings",
    "Signing",
    "Topology",
    "install",
    "publishing",
]
