"""Breaks the links of workers, publishers and the store: a proxy stands in each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, Literal, get_args

from unlost.chaos.nemesis.base import Injury, Nemesis, Scene
from unlost.errors import HarnessError
from unlost.testing.proxy import Fault, FaultKind

LinkName = Literal["worker", "publisher", "store"]


@dataclass(frozen=True, kw_only=True)
class LinkFault(Nemesis):
    """A link becomes slow, is reset, swallows everything, or breaks in the middle of a frame.

    Args:
        links: Whose: between workers and broker, publishers and broker, or everybody and the store.
        faults: Which; see :class:`unlost.testing.proxy.Fault`.
        delay: For ``latency``, of each read that passes.
        bytes: For ``cut``, what each connection may still pass.
    """

    links: Sequence[LinkName] = ("worker", "publisher")
    faults: Sequence[FaultKind] = ("latency", "reset", "black_hole", "cut")
    delay: timedelta = timedelta(milliseconds=200)
    bytes: int = 1000

    name: ClassVar[str] = "link_fault"
    usual_times: ClassVar[int] = 4

    def __post_init__(self) -> None:
        _refuse_unknown("links", self.links, get_args(LinkName))
        _refuse_unknown("faults", self.faults, get_args(FaultKind))

    def kinds(self) -> Sequence[str]:
        """Return every fault of every link."""
        return [f"{link} {fault}" for link in self.links for fault in self.faults]

    def link_names(self) -> Sequence[str]:
        """Return the links that must be there for it."""
        return self.links

    def strike(self, injury: Injury, scene: Scene) -> None:
        """Break the link, let it last, heal it."""
        link, _, kind = injury.what.partition(" ")
        if link not in scene.links:
            raise HarnessError(f"there is no link of the {link}: a store in a file, for instance, has none")
        fault = Fault(kind=kind, delay=self.delay, bytes=self.bytes)  # type: ignore[arg-type]
        with scene.outage(self.name, target=link, fault=kind):
            scene.links[link].injure(fault)
            try:
                scene.last(self.lasting)
            finally:
                scene.links[link].heal()


def _refuse_unknown(field: str, given: Sequence[str], known: Sequence[str]) -> None:
    if not given or not set(given) <= set(known):
        raise ValueError(f"LinkFault: {field} are {', '.join(known)}, not {given!r}")
