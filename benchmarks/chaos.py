"""The shop on unlost and on plain Celery under the same nemeses: what is lost, done twice, stuck.

Run as ``python -m benchmarks.chaos`` with the examples on the path; prints a table in Markdown, and as its
last line the same as JSON. Every cell is one run of 15 seconds with the same seed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from shop.workload import Orders
from unlost.chaos import (
    Chaos,
    CloseConnections,
    EffectsOnce,
    KillBroker,
    KillWorkers,
    LinkFault,
    NothingLost,
    Outcome,
    PauseBroker,
)
from unlost.chaos.nemesis import Nemesis
from unlost.chaos.places import Places
from unlost.errors import HarnessError

SECOND = timedelta(seconds=1)
SEED = 1
PATIENCE = timedelta(minutes=2)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to build the shop."""

    app: str
    plain: bool
    environment: Mapping[str, str] = field(default_factory=dict)


CONTENDERS = {
    "Celery, defaults": Contender(app="shop.plain:app", plain=True),
    "Celery, hardened": Contender(app="shop.plain:app", plain=True, environment={"SHOP_HARDENED": "1"}),
    "unlost": Contender(
        app="shop.app:app",
        plain=False,
        environment={"UNLOST_LEASE": "6", "UNLOST_CONNECT_PATIENCE": "60", "UNLOST_PUBLISH_PATIENCE": "60"},
    ),
}
NEMESES: Mapping[str, Sequence[Nemesis]] = {
    "workers killed": [KillWorkers(every=SECOND)],
    "broker killed": [KillBroker(times=1)],
    "broker frozen": [PauseBroker(times=2, lasting=5 * SECOND)],
    "connections closed": [CloseConnections(times=3)],
    "links broken": [LinkFault(times=6)],
}


def main() -> None:
    """Run every contender under every nemesis."""
    cells = {}
    with Places(os.environ) as places:
        for title, nemeses in NEMESES.items():
            for name, contender in CONTENDERS.items():
                cells[f"{title} / {name}"] = cell = judged(places, contender, nemeses)
                print(f"{title}, {name}: {cell}", file=sys.stderr, flush=True)
    for line in table(cells):
        print(line)
    print(json.dumps(cells))


def judged(places: Places, contender: Contender, nemeses: Sequence[Nemesis]) -> dict[str, int | str]:
    """Run one cell and count."""
    with tempfile.TemporaryDirectory() as folder:
        kit = Chaos(places, Path(folder), environ=os.environ, seed=SEED)
        try:
            run = kit.run(
                app=contender.app,
                workload=Orders(
                    rate=8,
                    duration=15 * SECOND,
                    threads=2,
                    plain=contender.plain,
                    work_ms=40,
                    linger_ms=30,
                    flaky_every=10,
                ),
                nemeses=nemeses,
                environment=contender.environment,
                patience=PATIENCE,
            )
        except HarnessError as exc:
            return {"failed": str(exc)[:200]}
        return _counted(run)


def _counted(run: Outcome) -> dict[str, int | str]:
    lost, once = run.judge(NothingLost(), EffectsOnce()).findings[:2]
    proved = int(lost.figures["lost"])
    return {
        "confirmed": int(lost.figures["confirmed"]),
        "lost": proved,
        # Confirmed and not done, but still in a queue that nobody takes it from.
        "stuck": int(lost.figures["missing"]) - proved,
        "twice": int(once.figures["duplicate_effects"]),
        "injuries": sum(run.injuries.values()),
    }


def table(cells: Mapping[str, Mapping[str, int | str]]) -> Iterator[str]:
    """Render the cells: lost / twice / stuck, of so many confirmed effects."""
    yield "| | " + " | ".join(CONTENDERS) + " |"
    yield "|---" * (len(CONTENDERS) + 1) + "|"
    for title in NEMESES:
        shown = [_cell(cells[f"{title} / {name}"]) for name in CONTENDERS]
        yield f"| {title} | " + " | ".join(shown) + " |"


def _cell(cell: Mapping[str, int | str]) -> str:
    if "failed" in cell:
        return "no result"
    return f"{cell['lost']} / {cell['twice']} / {cell['stuck']} of {cell['confirmed']}"


if __name__ == "__main__":
    main()
