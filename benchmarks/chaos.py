"""The shop on unlost, plain Celery and Dramatiq under the same nemeses: what is lost, done twice, stuck.

``make comparison`` runs it and writes ``docs/comparison.md``; the last line it prints is the same as JSON.
Every cell is one run of some seconds with the same seed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import click

from benchmarks.dramatiq_shop.workload import DramatiqOrders
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
from unlost.chaos.checker import Verdict
from unlost.chaos.nemesis import Nemesis
from unlost.chaos.places import Places
from unlost.chaos.runner import Programs
from unlost.errors import HarnessError

SECOND = timedelta(seconds=1)
SEED = 1
PATIENCE = timedelta(seconds=75)
DURATION = 12 * SECOND


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to build the shop."""

    app: str
    plain: bool = True
    orders: type[Orders] = Orders
    programs: Programs = field(default_factory=Programs)
    environment: Mapping[str, str] = field(default_factory=dict)


def _dramatiq(**environment: str) -> Contender:
    home = "benchmarks.dramatiq_shop"
    return Contender(
        app=f"{home}.shop",
        orders=DramatiqOrders,
        programs=Programs(declare=f"{home}.declare", client=f"{home}.client", worker=f"{home}.worker"),
        environment=environment,
    )


CONTENDERS = {
    "Celery, defaults": Contender(app="shop.plain:app"),
    "Celery, hardened": Contender(app="shop.plain:app", environment={"SHOP_HARDENED": "1"}),
    "Dramatiq, defaults": _dramatiq(),
    "Dramatiq, confirms": _dramatiq(SHOP_HARDENED="1"),
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


#: What the command writes.
PAGE = """# The same load and faults on others

The example shop, whose orders each promise three effects, under the same nemeses with the same seed on
plain Celery, on Dramatiq and on unlost: **effects lost / done twice / stuck, of so many confirmed**.
Lost is what was confirmed and is neither done nor a dead letter, with every queue proved empty; stuck is
what was confirmed, is not done, and may still be in a queue that did not become empty.

{table}

"Hardened" is what guides recommend: late acks, reject on a lost worker, prefetch 1, quorum queues,
publisher confirms ([`examples/shop/plain.py`](../examples/shop/plain.py)). "Confirms" is Dramatiq with
`confirm_delivery` ([`benchmarks/dramatiq_shop/`](../benchmarks/dramatiq_shop/)); its queues are classic
ones, and its acks are late by default. Without confirms "confirmed" only says that the call returned.
Both retry a failed payment after a second. None of them but unlost ties an effect to the record that it
is done, and none claims to: a task that is killed between the two is done again.

A publish that raised an error is not counted, whatever came of it, so "of so many" differs: while the
broker or its link is down the others give up within seconds, and unlost is set to wait for up to 60 s. The
seed fixes when a nemesis strikes; a worker that is still starting is spared, so the kills differ a little.

One short run a cell shows what can happen, not how often: the numbers change with each machine and each
run, zeros among the others' too. A cell without a result is a run that did not come to its end, or
whose nemesis never struck while there was work.

Measured by `make comparison` on {date}: {versions}, RabbitMQ {broker}; {duration} s of load a cell, seed
{seed}, {cores} cores, load averages at its end {load} (other work ran on the machine).
"""


@click.command()
@click.option("--page", type=click.Path(path_type=Path), help="Write the table as a page of the docs.")
@click.option("--only", default="", help="Cells whose name has this in it.")
def main(page: Path | None, only: str) -> None:
    """Run every contender under every nemesis."""
    cells = {}
    with Places(os.environ) as places:
        for title, nemeses in NEMESES.items():
            for name, contender in CONTENDERS.items():
                if only in f"{title} / {name}":
                    cells[f"{title} / {name}"] = cell = judged(places, contender, nemeses)
                    print(f"{title}, {name}: {cell}", file=sys.stderr, flush=True)
        with places.place(Path(tempfile.mkdtemp())) as place:
            broker = place.describe()
    shown = list(table(cells))
    if page is not None:
        page.write_text(PAGE.format(table="\n".join(shown), **facts(broker)))
    print("\n".join(shown))
    print(json.dumps(cells))


def facts(broker: str) -> dict[str, str | int]:
    """Return what was measured, with what, and how busy the machine was."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("celery", "dramatiq", "pika", "unlost"))
    return {
        "broker": broker,
        "versions": versions,
        "seed": SEED,
        "duration": int(DURATION.total_seconds()),
        "load": ", ".join(f"{each:.1f}" for each in os.getloadavg()),
        "cores": os.cpu_count() or 0,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def judged(places: Places, contender: Contender, nemeses: Sequence[Nemesis]) -> dict[str, int | str]:
    """Run one cell and count."""
    with tempfile.TemporaryDirectory() as folder:
        kit = Chaos(places, Path(folder), environ=os.environ, seed=SEED)
        try:
            run = kit.run(
                app=contender.app,
                workload=contender.orders(
                    rate=8,
                    duration=DURATION,
                    threads=2,
                    plain=contender.plain,
                    work_ms=40,
                    linger_ms=30,
                    flaky_every=10,
                ),
                nemeses=nemeses,
                environment=contender.environment,
                programs=contender.programs,
                patience=PATIENCE,
            )
        except HarnessError as exc:
            return {"failed": str(exc)[:200]}
        return _counted(run)


def _counted(run: Outcome) -> dict[str, int | str]:
    """Count, unless the nemesis never struck at work: a zero would then say nothing."""
    lost, once, active = run.judge(NothingLost(), EffectsOnce()).findings
    if active.verdict is not Verdict.VALID:
        return {"failed": "; ".join(each.explanation for each in active.anomalies)}
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
        shown = [_cell(cells.get(f"{title} / {name}", {"failed": "not run"})) for name in CONTENDERS]
        yield f"| {title} | " + " | ".join(shown) + " |"


def _cell(cell: Mapping[str, int | str]) -> str:
    if "failed" in cell:
        return "no result"
    return f"{cell['lost']} / {cell['twice']} / {cell['stuck']} of {cell['confirmed']}"


if __name__ == "__main__":
    main()
