"""The demonstration: the example shop under kills, reliable or plain, and its verdict."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from unlost.broker.apply import apply
from unlost.broker.management import Management
from unlost.chaos.runner import OnProgress, Plan, Result, Run
from unlost.errors import ConfigurationError
from unlost.testing.brokers import Broker, Vhost
from unlost.topology import naming
from unlost.topology.model import Topology

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
        """Apply the topology, run the load under faults, and judge.

        Args:
            broker: Killed once, unless it is somebody else's.
            vhost: An empty vhost on it.
            folder: An empty folder for store, history and logs.
            on_progress: Told at every step.
        """
        home = example_home()
        sys.path.insert(0, str(home.code))
        topology = Topology.load(home.topology)
        if not self.plain:
            with Management(vhost.management_url, vhost.name) as management:
                apply(topology, management)
        plan = self._plan(broker, vhost, folder, home, topology)
        return Run(plan, broker, vhost, folder, on_progress)()

    def _plan(
        self, broker: Broker, vhost: Vhost, folder: Path, home: ExampleHome, topology: Topology
    ) -> Plan:
        store = self.store or f"sqlite:///{folder / 'shop.sqlite'}"
        inherited = self.environ.get("PYTHONPATH")
        return Plan(
            workload=WORKLOAD,
            options={"plain": self.plain, "store": store, "declined_every": 100, "flaky_every": 20},
            environment={
                **self.environ,
                "CELERY_BROKER_URL": vhost.amqp_url,
                "UNLOST_STORE": store,
                # A broker that is being restarted is no reason to give an order up.
                "UNLOST_CONNECT_PATIENCE": "60",
                "PYTHONPATH": ":".join(filter(None, (str(home.code), inherited))),
            },
            letters=[] if self.plain else letters_of(topology),
            messages=self.orders,
            rate=self.rate,
            kill_every=self.kill_every,
            restart_broker_at=0.5 if "restart" in broker.can else None,
            seed=self.seed,
        )


def letters_of(topology: Topology) -> list[str]:
    """Return the queues of a topology that hold letters."""
    dead = [naming.dead_letter_queue_of(queue) for queue in topology.queues]
    return [*dead, naming.unroutable_queue_of(topology.name)]


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
