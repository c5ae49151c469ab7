"""A plan over a large broker: time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from unlost.broker.management import Management
from unlost.testing.brokers import Vhost
from unlost.topology.expand import expand
from unlost.topology.model import Topology

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

QUEUES, EXCHANGES, BINDINGS = 1000, 200, 2000
SECONDS, MIB = 5.0, 200.0


def large() -> dict[str, Any]:
    """Declare 1,000 queues under 100 policies, 200 exchanges and 2,000 bindings."""
    return {
        "objects": {
            "exchanges": {f"e{number}": {"type": "topic"} for number in range(EXCHANGES)},
            "queues": {f"q{number}": {"type": "classic"} for number in range(QUEUES)},
            "bindings": [
                {
                    "source": f"e{number % EXCHANGES}",
                    "destination": f"q{number % QUEUES}",
                    "routing_key": f"k.{number}",
                }
                for number in range(BINDINGS)
            ],
            "policies": {
                f"p{number}": {"pattern": f"^q{number}[0-9]$", "definition": {"max-length": 1000 + number}}
                for number in range(100)
            },
        }
    }


MEASURE = textwrap.dedent(
    """
    import json, resource, sys, time
    from unlost.broker.apply import compare
    from unlost.broker.management import Management
    from unlost.topology.model import Topology

    url, vhost, path = sys.argv[1:]
    began = time.monotonic()
    topology = Topology.load(path)
    with Management(url, vhost) as management:
        found = compare(topology, management)
    seconds = time.monotonic() - began
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([seconds, mib, len(found.drift), found.unchanged]))
    """
)


def test_a_plan_over_a_large_broker_is_quick_and_small(vhost: Vhost, tmp_path: Any) -> None:
    """A plan over 1,000 queues, 200 exchanges, 2,000 bindings takes under 5 s and 200 MB, with its YAML."""
    declared = large()
    path = tmp_path / "large.yaml"
    path.write_text(json.dumps(declared))  # JSON is YAML
    topology = Topology.load(path)
    with Management(vhost.management_url, vhost.name, timeout=timedelta(minutes=2)) as management:
        objects = expand(topology, management.version()).objects
        for kind in ("policy", "exchange", "queue", "binding"):
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(management.put, [each for each in objects if each.kind == kind]))
        gone = next(each for each in objects if each.kind == "binding")
        management.delete(gone)
    arguments = [vhost.management_url, vhost.name, str(path)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True
    )
    seconds, mib, drift, unchanged = json.loads(done.stdout)
    print(f"{seconds:.2f} s, {mib:.0f} MiB")
    assert (drift, unchanged) == (1, len(objects) - 1)
    assert seconds < SECONDS
    assert mib < MIB
