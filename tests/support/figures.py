"""What a long run measured: one JSON line on its output (``pytest -s`` shows it)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from unlost.testing.brokers import Broker


def tell(run: str, broker: Broker | None = None, **figures: Any) -> None:
    """Print the figures of a run with its date and the versions that it ran on."""
    versions = {name: version(name) for name in ("celery", "kombu", "amqp")}
    if broker is not None:
        versions["rabbitmq"] = ".".join(map(str, broker.version))
    print(
        "\n"
        + json.dumps(
            {"run": run, "date": datetime.now(UTC).date().isoformat(), **figures, "versions": versions}
        )
    )


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value below which this part of the values lies (the nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(part * len(ordered) + 0.5) - 1))]
