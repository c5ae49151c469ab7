"""The example topology as the definitions that RabbitMQ loads at boot.

``python -m tests.support.definitions`` writes ``rabbitmq/definitions.d/shop.json`` anew.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unlost.topology.expand import expand
from unlost.topology.model import Topology

ROOT = Path(__file__).parents[2]
FILE = ROOT / "rabbitmq" / "definitions.d" / "shop.json"
VHOST = "/"
_SECTIONS = {"exchange": "exchanges", "queue": "queues", "binding": "bindings", "policy": "policies"}


def definitions() -> dict[str, Any]:
    """Return what the example topology needs, as definitions of one vhost and without users."""
    out: dict[str, Any] = {"vhosts": [{"name": VHOST}], **{name: [] for name in _SECTIONS.values()}}
    for each in expand(Topology.load(ROOT / "topology"), (4, 3)).objects:
        said = {name.replace("apply_to", "apply-to"): value for name, value in asdict(each).items()}
        out[_SECTIONS[each.kind]].append({"vhost": VHOST, **said})
    return out


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(definitions(), indent=1) + "\n")
