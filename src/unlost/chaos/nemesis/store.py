"""Kills the store of ledger and effects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlost.chaos.nemesis.base import Injury, Nemesis, Scene
from unlost.errors import HarnessError


@dataclass(frozen=True, kw_only=True)
class KillStore(Nemesis):
    """SIGKILL to the store's server, which comes back on the same data."""

    name: ClassVar[str] = "kill_store"
    needs: ClassVar[frozenset[str]] = frozenset({"store"})

    def strike(self, _injury: Injury, scene: Scene) -> None:
        """Kill, wait, start."""
        if scene.store is None:
            raise HarnessError("there is no store server of ours to kill: ask for one")
        with scene.outage(self.name, target=scene.store.kind):
            scene.store.kill()
            try:
                scene.last(self.lasting)
            finally:
                scene.store.start()
