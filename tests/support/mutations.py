"""The shop without a guarantee that no setting switches off: patched, in the run's processes only."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery.worker.state import task_ready

from shop.workload import Orders
from unlost.broker.frames import Frames
from unlost.chaos.declare import MANAGEMENT_VARIABLE
from unlost.tasks.request import ReliableRequest


@dataclass(frozen=True, kw_only=True)
class Mutated(Orders):
    """Orders on a shop that lacks a guarantee."""

    without: str

    def __post_init__(self) -> None:
        """Switch it off, wherever this is a process of a run."""
        if MANAGEMENT_VARIABLE in os.environ:
            _MUTATIONS[self.without]()


def _without_mandatory() -> None:
    """Publish without the flag: what no queue is bound for is confirmed and gone."""
    original: Callable[[Frames, str, str], bytes] = Frames._method_to
    # The flags are the last byte before the end of the frame; mandatory is its lowest bit.
    Frames._method_to = lambda self, *place: original(self, *place)[:-2] + b"\x00\xce"  # type: ignore[method-assign]


def _without_lost_worker_reject() -> None:
    """Ack the delivery of a process that died, as Celery does without ``task_reject_on_worker_lost``."""

    def ack(self: ReliableRequest, _: BaseException) -> None:
        task_ready(self)
        self.acknowledge()

    ReliableRequest._on_crash = ack  # type: ignore[method-assign, assignment]


_MUTATIONS: dict[str, Callable[[], Any]] = {
    "mandatory": _without_mandatory,
    "lost_worker_reject": _without_lost_worker_reject,
}
