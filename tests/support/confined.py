"""A worker in a container with a limit of memory, beyond which the kernel kills: not a signal of ours."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.workers import ROOT, SOON, Bench
from unlost.testing.brokers.docker import OWNER_LABEL, connect_engine, image_of, remove_orphans
from unlost.testing.brokers.owner import own_name
from unlost.testing.waiting import wait_until

#: A worker of two processes has some 120 MB.
LIMIT = "300m"

#: Where the container sees how many of its processes the kernel has killed: cgroup 1, cgroup 2.
_COUNTERS = ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events")


@dataclass(frozen=True)
class Confined:
    """A worker that runs in a container."""

    container: Any

    @property
    def is_running(self) -> bool:
        """Whether the worker is still there."""
        self.container.reload()
        return bool(self.container.status == "running")

    def log(self) -> str:
        """Return what it has said."""
        return str(self.container.logs().decode())

    def kills(self) -> int:
        """Return how many processes the kernel has killed for want of memory."""
        _, told = self.container.exec_run(["cat", *_COUNTERS])
        return next(
            int(line.split()[1]) for line in told.decode().splitlines() if line.startswith("oom_kill ")
        )


@contextmanager
def confined_worker(shop: Bench) -> Iterator[Confined]:
    """Start a worker of a bench's app in a container with :data:`LIMIT`; it consumes when this yields.

    It runs this very Python on this machine's libraries, and sees its processes and its network.
    """
    mine = {name: value for name, value in shop.environment.items() if os.environ.get(name) != value}
    readable = {"/usr", str(ROOT), sys.prefix, sys.base_prefix}
    with connect_engine(os.environ) as engine:
        remove_orphans(engine)
        container = engine.containers.create(
            image_of(engine, os.environ),
            [*shop.command("confined"), "--concurrency=2"],
            entrypoint="",
            name=f"unlost-{secrets.token_hex(6)}",
            labels={OWNER_LABEL: own_name()},
            environment=mine,
            working_dir=str(ROOT),
            mem_limit=LIMIT,
            memswap_limit=LIMIT,
            network_mode="host",
            pid_mode="host",
            volumes={
                **{path: {"bind": path, "mode": "ro"} for path in readable},
                str(shop.folder): {"bind": str(shop.folder), "mode": "rw"},
            },
        )
        made = Confined(container)
        try:
            container.start()
            wait_until(lambda: " ready." in made.log(), SOON, "the worker is ready", why_not=made.log)
            yield made
        finally:
            container.remove(force=True, v=True)
