"""The demonstration: the example shop under kills, reliable or plain, and its verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from unlost.chaos.nemesis import KillBroker, KillWorkers
from unlost.chaos.runner import OnProgress, Place, Plan, Result, Run, without_impossible
from unlost.errors import ConfigurationError
from unlost.testing.brokers import Broker, Vhost

WORKLOAD = "shop.workload:Orders"


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What to show.

    Attributes:
        plain: Run the shop on plain Celery defaults instead.
        orders: How many to place.
        rate: Orders a second.
        kill_every: Mean time between kills of worker processes.
        seed: Of the nemesis.
        store: URL of an empty SQL database for ledger and effects; a file in the folder when not given.
        environ: Environment of clients and workers; the broker and store are added.
    """

    plain: bool = False
    orders: int = 2000
    rate: float = 40.0
    kill_every: timedelta = timedelta(seconds=1)
    seed: int = 1
    store: str | None = field(default=None, repr=False)
    environ: Mapping[str, str] = field(repr=False)

    def run(self, broker: Broker, vhost: Vhost, folder: Path, on_progress: OnProgress) -> Result:
        """Run the load under faults, and judge.

        Args:
            broker: Killed once, unless it is somebody else's.
            vhost: An empty vhost on it.
            folder: An empty folder for store, history and logs.
            on_progress: Told at every step.
        """
        store = self.store or f"sqlite:///{folder / 'shop.sqlite'}"
        place = Place(vhost=vhost, broker=broker, store_url=store)
        return Run(without_impossible(self._plan(), place), place, folder, on_progress)()

    def _plan(self) -> Plan:
        home = example_home()
        inherited = self.environ.get("PYTHONPATH")
        return Plan(
            app="shop.plain:app" if self.plain else "shop.app:app",
            workload=WORKLOAD,
            options={"plain": self.plain, "declined_every": 100, "flaky_every": 20},
            environment={
                **self.environ,
                # A broker that is being restarted is no reason to give an order up.
                "UNLOST_CONNECT_PATIENCE": "60",
                "PYTHONPATH": ":".join(filter(None, (str(home.code), inherited))),
            },
            nemeses=[KillWorkers(every=self.kill_every), KillBroker(times=1, lasting=timedelta(0))],
            messages=self.orders,
            rate=self.rate,
            seed=self.seed,
        )


@dataclass(frozen=True)
class ExampleHome:
    """Where the example application lies."""

    code: Path
    topology: Path


def example_home() -> ExampleHome:
    """Find the example: inside an installed package, or in a checkout.

    Raises:
        ConfigurationError: It is in neither place.
    """
    package = Path(__file__).parents[1]
    installed = package / "_demo"
    if installed.is_dir():
        return ExampleHome(installed, installed / "topology")
    checkout = package.parents[1]
    if (checkout / "examples" / "shop").is_dir():
        return ExampleHome(checkout / "examples", checkout / "topology")
    raise ConfigurationError(
        f"the example shop is neither in {installed} nor in {checkout / 'examples'}: "
        "install unlost from a wheel or run in a checkout"
    )
