"""The values of the settlement model: what a world is, and what can still go wrong in it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from unlost.core.ids import Generation
from unlost.core.settlement import Row


class Do(StrEnum):
    """What a worker does next with its delivery."""

    BODY = "body"
    DECIDE = "decide"
    PUBLISH = "publish"
    MARK = "mark sent"
    HOLD = "publish held copy"
    ACK = "ack"


RESEND = (Do.PUBLISH, Do.MARK, Do.ACK)
PUT_BACK = (Do.HOLD, Do.ACK)


@dataclass(frozen=True)
class Protocol:
    """The order of settlement and its checks; each can be broken to see the model find it."""

    on_failure: tuple[Do, ...] = (Do.DECIDE, *RESEND)
    token_checked: bool = True
    marked_by_decision: bool = True
    done_is_final: bool = True


@dataclass(frozen=True)
class Faults:
    """How many faults of each kind may still happen."""

    crash: int = 0
    unknown: int = 0
    duplicate: int = 0
    expiry: int = 0
    redrive: int = 0
    cancel: int = 0


@dataclass(frozen=True)
class Worker:
    """A delivery in work: its copy's generation, the steps ahead, and the row as this worker knows it."""

    copy: Generation
    plan: tuple[Do, ...]
    row: Row | None = None

    def __str__(self) -> str:
        return name_of(self.copy)


@dataclass(frozen=True)
class World:
    """Everything that exists: broker, workers, ledger; and what an observer has counted."""

    faults: Faults
    queue: tuple[Generation, ...] = (Generation(0, 1),)
    workers: tuple[Worker, ...] = ()
    letters: tuple[Generation, ...] = ()
    row: Row | None = None
    effects: int = 0
    #: Runs of the body minus the recorded crashes, lost and released leases; one for each redrive.
    runs: tuple[int, ...] = (0,)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is under way any more."""
        return not self.queue and not self.workers


@dataclass(frozen=True)
class Step:
    """A transition; a fault is one that a healed system does not make."""

    what: str
    world: World
    is_fault: bool = False


def name_of(generation: Generation) -> str:
    """Return ``redrives.attempt``, as traces show it."""
    return f"{generation.redrives}.{generation.attempt}"
