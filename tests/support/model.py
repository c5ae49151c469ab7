"""An explicit-state model of settlement: the real decisions of the ledger under every small set of faults.

One message, its copies, and at most two workers. The row is only ever changed by the functions of
:mod:`unlost.core.settlement`; the model adds what surrounds them: a queue, a dead-letter queue, workers
that can stop between any two steps, and the store's compare-and-set. All interleavings within a budget
of faults are explored breadth first, so the first trace to a violation is a shortest one.

Left out because it cannot matter: time (a lease is alive, or it expired; a delay may always be over),
and a crash between delivery and acquire (nothing happened yet).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TypeVar

from tests.support.world import PUT_BACK, RESEND, Do, Faults, Protocol, Step, Worker, World, name_of
from unlost.core import settlement
from unlost.core.headers import Failure
from unlost.core.ids import Generation, MessageId
from unlost.core.settlement import (
    Admission,
    AlreadyDone,
    Delivery,
    Held,
    Limits,
    Resend,
    Row,
    Run,
    State,
    Superseded,
)

MESSAGE = MessageId("shop.charge", "m")
LIMITS = Limits(max_crashes=2, max_lost=2)
MAX_ATTEMPTS = 2
MAX_WORKERS = 2
LEASE = timedelta(seconds=1)

T = TypeVar("T")


@dataclass
class Found:
    """What an exploration found: a shortest trace for each kind of violation."""

    worlds: int = 0
    #: How the ledger's decided rows came about: their states and reasons.
    reasons: set[tuple[State, str]] = field(default_factory=set)
    violations: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        traces = ["\n    ".join([name, *trace]) for name, trace in self.violations.items()]
        return "\n".join([f"{self.worlds} worlds", *traces])


def explore(faults: Faults, protocol: Protocol | None = None) -> Found:
    """Visit every world that can be reached within the faults and check the invariants in each."""
    model = _Model(protocol or Protocol())
    start = World(faults)
    came_from: dict[World, tuple[World, str] | None] = {start: None}
    healthy: dict[World, list[World]] = {}
    found = Found()
    todo = deque([start])
    while todo:
        world = todo.popleft()
        if world.row is not None and world.row.failure is not None:
            found.reasons.add((world.row.state, world.row.failure.reason))
        for name in violations(world):
            found.violations.setdefault(name, _trace(came_from, world))
        for step in model.steps(world):
            if not step.is_fault:
                healthy.setdefault(step.world, []).append(world)
            if step.world not in came_from:
                came_from[step.world] = (world, step.what)
                todo.append(step.world)
    found.worlds = len(came_from)
    stuck = _first_stuck(came_from, healthy)
    if stuck is not None:
        found.violations["stuck"] = _trace(came_from, stuck)
    return found


def violations(world: World) -> Iterator[str]:
    """Yield the invariants that a world breaks."""
    row = world.row
    if world.effects > 1:
        yield "effect twice"
    if any(runs > MAX_ATTEMPTS for runs in world.runs):
        yield "body beyond its budget"
    if row is None:
        return
    if row.state is State.DONE and any(g.redrives >= row.generation.redrives for g in world.letters):
        yield "letter of a done message"
    if row.state is State.CANCELLED and world.effects:
        yield "effect of a cancelled message"
    if world.is_quiet and not _is_accounted_for(world, row):
        yield "lost"


def _is_accounted_for(world: World, row: Row) -> bool:
    redrives = row.generation.redrives
    ended = row.state in (State.DONE, State.CANCELLED)
    return ended or any(letter.redrives >= redrives for letter in world.letters)


def _first_stuck(came_from: Iterable[World], healthy: dict[World, list[World]]) -> World | None:
    """Return the first world from which no quiet one can be reached without another fault."""
    can_end = {world for world in came_from if world.is_quiet}
    todo = list(can_end)
    while todo:
        for before in healthy.get(todo.pop(), ()):
            if before not in can_end:
                can_end.add(before)
                todo.append(before)
    return next((world for world in came_from if world not in can_end), None)


def _trace(came_from: dict[World, tuple[World, str] | None], world: World) -> list[str]:
    steps = []
    while (before := came_from[world]) is not None:
        world, what = before
        steps.append(what)
    return steps[::-1]


class _Model:
    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def steps(self, world: World) -> Iterator[Step]:
        """Yield every transition out of a world."""
        if len(world.workers) < MAX_WORKERS:
            for copy in dict.fromkeys(world.queue):
                yield self._deliver(replace(world, queue=_without(world.queue, copy)), copy)
        for worker in dict.fromkeys(world.workers):
            rest = replace(world, workers=_without(world.workers, worker))
            yield from self._work(rest, worker)
            yield from _crash(rest, worker)
        yield from _expire(world)
        yield from _duplicate(world)
        yield from _redrive(world)
        yield from self._cancel(world)

    # --- a worker takes a delivery

    def _deliver(self, world: World, copy: Generation) -> Step:
        admission = self._admit(world, copy)
        what = f"{name_of(copy)}: {_describe(admission)}"
        if isinstance(admission, Held):
            return Step(what, _with(world, Worker(copy, PUT_BACK)))
        if isinstance(admission, AlreadyDone | Superseded):
            return Step(what, _with(world, Worker(copy, (Do.ACK,))))
        row = admission.row
        if isinstance(admission, Resend):
            return Step(what, _with(replace(world, row=row), Worker(copy, RESEND, row)))
        # A takeover of the same redrive is charged; a new redrive begins with a clean sheet.
        runs = (*world.runs, *(0,) * (row.generation.redrives + 1 - len(world.runs)))
        charged = row.lost - world.row.lost if world.row and row.lost else 0
        runs = _added(runs, row.generation.redrives, 1 - charged)
        return Step(what, _with(replace(world, row=row, runs=runs), Worker(copy, (Do.BODY, Do.ACK), row)))

    @staticmethod
    def _admit(world: World, copy: Generation) -> Admission:
        row = world.row
        token = row.token + 1 if row else 1
        return settlement.admit(
            row,
            # Tokens only grow, so each delivery has a holder of its own.
            Delivery(message=MESSAGE, generation=copy, holder=f"holder-{token}"),
            now=0.0,
            now_ms=0,
            lease=LEASE,
            holder_gone=row is not None and not any(_is_holder(row, worker) for worker in world.workers),
            limits=LIMITS,
            decision=f"decision-{token}",
        )

    # --- a worker goes on

    def _work(self, world: World, worker: Worker) -> Iterator[Step]:
        do, plan = worker.plan[0], worker.plan[1:]
        after = replace(worker, plan=plan)
        if do is Do.BODY:
            yield self._commit(world, worker)
            yield Step(f"{worker}: body fails", _with(world, replace(worker, plan=self._protocol.on_failure)))
        elif do is Do.DECIDE:
            yield self._decide(world, worker)
        elif do is Do.MARK:
            yield Step(f"{worker}: mark sent", _with(self._mark(world, worker), after))
        elif do is Do.ACK:
            yield Step(f"{worker}: ack", _with(world, after))
        else:
            yield Step(f"{worker}: {do}, confirmed", _with(_published(world, worker, do), after))
            yield from _unknown(world, worker, do)

    def _commit(self, world: World, worker: Worker) -> Step:
        """Commit the effect and the done record in one transaction; what ``SqlStore._complete`` does."""
        if not self._is_ours(world, worker):
            return _fenced(world, worker)
        done = _known(worker)._replace(state=State.DONE, holder=None, token=_known(worker).token + 1)
        committed = replace(world, row=done, effects=world.effects + 1)
        return Step(f"{worker}: body commits", _with(committed, replace(worker, plan=(Do.ACK,))))

    def _decide(self, world: World, worker: Worker) -> Step:
        if not self._is_ours(world, worker):
            return _fenced(world, worker)
        decided = _ending(_known(worker))
        after = replace(worker, plan=worker.plan[1:], row=decided)
        what = f"{worker}: decide {decided.state} {name_of(decided.generation)}"
        return Step(what, _with(replace(world, row=decided), after))

    def _is_ours(self, world: World, worker: Worker) -> bool:
        row, token = world.row, _known(worker).token
        return not self._protocol.token_checked or (
            row is not None and row.state is State.LEASED and row.token == token
        )

    def _mark(self, world: World, worker: Worker) -> World:
        row, decided = world.row, _known(worker)
        if row is None:
            return world
        if self._protocol.marked_by_decision:
            same = row.decision == decided.decision
        else:
            same = row.decision is not None and row.generation == decided.generation
        return replace(world, row=row._replace(sent=True)) if same else world

    def _cancel(self, world: World) -> Iterator[Step]:
        """Yield an operator's revoke, recorded by a worker that met a copy: it loses to done only."""
        row = world.row
        is_done = row is not None and row.state is State.DONE
        if not world.faults.cancel or (is_done and self._protocol.done_is_final):
            return
        spent = replace(world, faults=replace(world.faults, cancel=world.faults.cancel - 1))
        for copy in dict.fromkeys((*world.queue, *(worker.copy for worker in world.workers))):
            cancelled = replace(spent, row=settlement.cancelled(row, copy))
            yield Step(f"{name_of(copy)}: cancelled", cancelled, is_fault=True)


def _crash(world: World, worker: Worker) -> Iterator[Step]:
    """Yield the three ways to lose a worker: with its host, its child alone, or by a shutdown."""
    if not world.faults.crash:
        return
    lost = replace(world, faults=replace(world.faults, crash=world.faults.crash - 1))
    if Do.ACK in worker.plan:
        lost = _queued(lost, worker.copy)
    before = f"{worker}: before {worker.plan[0]},"
    yield Step(f"{before} the worker is lost", lost, is_fault=True)
    row = lost.row
    if row is not None and _is_holder(row, worker):
        runs = _added(lost.runs, row.generation.redrives, -1)
        crashed = replace(lost, row=settlement.crashed(row), runs=runs)
        yield Step(f"{before} the child crashes", crashed, is_fault=True)
        released = replace(lost, row=settlement.released(row), runs=runs)
        yield Step(f"{before} the worker shuts down", released, is_fault=True)


def _is_holder(row: Row, worker: Worker) -> bool:
    return row.holder is not None and worker.row is not None and worker.row.holder == row.holder


def _known(worker: Worker) -> Row:
    if worker.row is None:
        raise ValueError(f"{worker.plan[0]} needs a row")
    return worker.row


def _ending(row: Row) -> Row:
    """Return the row after a failed attempt, by a policy of MAX_ATTEMPTS attempts."""
    decision, failure = f"decision-{row.token + 1}", Failure(reason="failed")
    if row.generation.attempt < MAX_ATTEMPTS:
        return settlement.decided_waiting(row, decision=decision, due_ms=0, failure=failure)
    return settlement.decided_dead(row, decision=decision, failure=failure)


def _fenced(world: World, worker: Worker) -> Step:
    return Step(f"{worker}: fenced out", _with(world, Worker(worker.copy, PUT_BACK)))


def _published(world: World, worker: Worker, do: Do) -> World:
    if do is Do.HOLD:
        return _queued(world, worker.copy)
    row = _known(worker)
    decided = _ending(row) if row.state is State.LEASED else row
    if decided.state is State.WAITING:
        return _queued(world, decided.generation)
    return replace(world, letters=_sorted((*world.letters, decided.generation)))


def _unknown(world: World, worker: Worker, do: Do) -> Iterator[Step]:
    """Yield a publish whose confirm is lost: it arrived or not, and is repeated or given back."""
    if not world.faults.unknown:
        return
    spent = replace(world, faults=replace(world.faults, unknown=world.faults.unknown - 1))
    for what, then in (("arrived", _published(spent, worker, do)), ("did not arrive", spent)):
        back = _queued(then, worker.copy) if Do.ACK in worker.plan else then
        yield Step(f"{worker}: {do}, unknown, {what}: requeue", back, is_fault=True)
        yield Step(f"{worker}: {do}, unknown, {what}: again", _with(then, worker), is_fault=True)


def _expire(world: World) -> Iterator[Step]:
    """Yield the end of a lease whose holder lives: it was stopped, or could not be watched dying."""
    row = world.row
    if row is None or not world.faults.expiry or not row.expires:
        return
    spent = replace(world, faults=replace(world.faults, expiry=world.faults.expiry - 1))
    expired = replace(spent, row=row._replace(expires=0.0))
    yield Step("the lease of a stopped holder expires", expired, is_fault=True)
    for worker in spent.workers:
        if _is_holder(row, worker):
            runs = _added(spent.runs, row.generation.redrives, -1)
            ended = _queued(replace(spent, row=settlement.crashed(row), runs=runs), worker.copy)
            yield Step(f"{worker}: counted as crashed, but alive", ended, is_fault=True)


def _duplicate(world: World) -> Iterator[Step]:
    """Yield another copy of a message that is queued or, its connection lost, in work."""
    if world.faults.duplicate:
        faults = replace(world.faults, duplicate=world.faults.duplicate - 1)
        for copy in dict.fromkeys((*world.queue, *(worker.copy for worker in world.workers))):
            doubled = _queued(replace(world, faults=faults), copy)
            yield Step(f"{name_of(copy)}: delivered twice", doubled, is_fault=True)


def _redrive(world: World) -> Iterator[Step]:
    """Yield an operator's redrive of a letter, with and without the letter being taken away."""
    if not world.faults.redrive:
        return
    faults = replace(world.faults, redrive=world.faults.redrive - 1)
    for letter in dict.fromkeys(world.letters):
        again = Generation(letter.redrives + 1, 1)
        sent = _queued(replace(world, faults=faults), again)
        taken = replace(sent, letters=_without(sent.letters, letter))
        yield Step(f"letter {name_of(letter)}: redriven as {name_of(again)}", taken, is_fault=True)
        if faults.crash:
            left = replace(sent, faults=replace(faults, crash=faults.crash - 1))
            yield Step(f"letter {name_of(letter)}: redriven, but left behind", left, is_fault=True)


def _describe(admission: Admission) -> str:
    match admission:
        case Run(row):
            return f"acquire as {name_of(row.generation)}"
        case Resend(row):
            return f"{row.state} {name_of(row.generation)} not known to be sent"
        case AlreadyDone():
            return "already done"
        case Superseded():
            return "superseded"
        case Held():
            return "held"


def _queued(world: World, copy: Generation) -> World:
    return replace(world, queue=_sorted((*world.queue, copy)))


def _with(world: World, worker: Worker) -> World:
    """Return the world with another worker, if it has work left; worlds do not differ by their order."""
    if not worker.plan:
        return world
    workers = sorted((*world.workers, worker), key=lambda w: (w.copy, w.plan, w.row.token if w.row else 0))
    return replace(world, workers=tuple(workers))


def _sorted(generations: tuple[Generation, ...]) -> tuple[Generation, ...]:
    return tuple(sorted(generations))


def _without(items: tuple[T, ...], item: T) -> tuple[T, ...]:
    at = items.index(item)
    return items[:at] + items[at + 1 :]


def _added(counts: tuple[int, ...], at: int, amount: int) -> tuple[int, ...]:
    return (*counts[:at], counts[at] + amount, *counts[at + 1 :])
