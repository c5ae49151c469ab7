"""Which faults struck which running tasks, and how soon those were done after all.

A fault that lists process ids (``extra["pids"]``) strikes the tasks that run in them; any other, such as a
restart of the broker, strikes every task that runs. Operations with the same time count in the order
start, fault, end, whatever order they were merged in, so the choice among equals changes no verdict.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from unlost.chaos.checker.base import Anomalous, Finding, Verdict
from unlost.chaos.history import History, Op
from unlost.errors import HarnessError

KILLS = frozenset({"kill"})
NEMESIS = "nemesis"

#: A task that ended so short a time before a fault shows that the system was at work when it struck.
JUST_NS = 500_000_000


@dataclass(frozen=True, slots=True)
class Hit:
    """A fault that struck while a task was between its start and its end.

    Attributes:
        fault: The operation of the nemesis.
        value: The promised effect of the task.
    """

    fault: Op
    value: str


@dataclass(frozen=True, slots=True)
class Recovery:
    """A task that a fault interrupted and that took effect afterwards.

    Attributes:
        fault: The operation of the nemesis.
        value: The promised effect.
        took: From the fault to the effect.
    """

    fault: Op
    value: str
    took: timedelta


def faults(history: History, names: Collection[str] | None = None) -> list[Op]:
    """Return the operations at which a fault struck, in order of time.

    That is every ``ok`` or ``info`` of these names, except the ``ok`` that only says that an outage begun
    with ``info`` at the same target is over, and kills that found no process to kill.

    Args:
        history: The run.
        names: Operations of nemeses; ``None`` for all of them.
    """
    return [begin for begin, _ in outages(history, names)]


def outages(history: History, names: Collection[str] | None = None) -> list[tuple[Op, Op | None]]:
    """Return every fault with the operation that ended it; ``None`` for one that had no end."""
    found: list[tuple[Op, Op | None]] = []
    down: dict[tuple[str, object], int] = {}
    for op in sorted(_done(history, names), key=lambda op: (op.time_ns, op.type == "ok")):
        place, pids = (op.f, op.extra.get("target")), _pids(op)
        if op.type == "ok" and pids is None and place in down:
            begin = down.pop(place)
            found[begin] = found[begin][0], op
        elif pids is None or pids:
            down.update({place: len(found)} if op.type == "info" else {})
            found.append((op, None))
    return found


def _done(history: History, names: Collection[str] | None) -> Iterable[Op]:
    chosen = {op.f for op in history if op.process == NEMESIS} if names is None else names
    return (op for name in sorted(chosen) for op in history.of(name, "ok", "info"))


def _pids(fault: Op) -> list[int] | None:
    pids = fault.extra.get("pids")
    if pids is None or isinstance(pids, list):
        return pids
    raise HarnessError(f"operation {fault.index} ({fault.f}) must list its pids, not {pids!r}")


def hits(history: History, names: Collection[str] | None = None) -> list[Hit]:
    """Return every fault with every task that it struck while the task was running, in order of time.

    A killed process runs nothing any more; a task that only lost its broker runs on.
    """
    found: list[Hit] = []
    running: defaultdict[object, dict[str, None]] = defaultdict(dict)
    for op in _timeline(history, names):
        if op.f not in ("start", "end"):
            found.extend(Hit(op, value) for value in _struck(running, op))
        elif op.value is not None:
            _note(running[op.extra.get("pid")], op)
    return found


def _timeline(history: History, names: Collection[str] | None) -> list[Op]:
    # The sort is stable: among equal times this order stands.
    ops = [*history.of("start"), *faults(history, names), *history.of("end")]
    return sorted(ops, key=lambda op: op.time_ns)


def _note(tasks: dict[str, None], op: Op) -> None:
    if op.f == "end":
        tasks.pop(op.value or "", None)
    else:
        tasks[op.value or ""] = None


def _struck(running: dict[object, dict[str, None]], fault: Op) -> list[str]:
    pids = _pids(fault)
    tasks = running.values() if pids is None else [running.pop(pid, {}) for pid in pids]
    return list(dict.fromkeys(value for values in tasks for value in values))


def recoveries(history: History, names: Collection[str] | None = None) -> list[Recovery]:
    """Return how long each interrupted task took from the fault to its first effect.

    A task whose effect was there before the fault was not interrupted in what matters, and one whose
    effect never came did not recover: neither is in the list.
    """
    first = _first_effects(history)
    return [
        Recovery(hit.fault, hit.value, timedelta(microseconds=(first[hit.value] - hit.fault.time_ns) / 1000))
        for hit in hits(history, names)
        if first.get(hit.value, hit.fault.time_ns) > hit.fault.time_ns
    ]


def _first_effects(history: History) -> dict[str, int]:
    first: dict[str, int] = {}
    for value, op in history.named("effect", "ok"):
        first[value] = min(op.time_ns, first.get(value, op.time_ns))
    return first


def slowest_recovery(history: History, names: Collection[str] | None = None) -> timedelta | None:
    """Return the longest recovery; ``None`` if no fault interrupted a task that took effect later."""
    return max((recovery.took for recovery in recoveries(history, names)), default=None)


def lives(history: History, values: Collection[str]) -> Mapping[str, tuple[Op, ...]]:
    """Return for each value everything that concerns it: its own operations and the faults that struck it.

    A message may be lost in hands that had not begun its body, and an effect repeated for what came after
    the body's end. So where no fault struck a running body, the first one after the last operation on the
    value is shown: nothing else that is known of explains its silence.
    """
    struck: dict[str, list[Op]] = {value: [] for value in values}
    for hit in hits(history) if values else ():
        if hit.value in struck:
            struck[hit.value].append(hit.fault)
    all_faults = faults(history) if values else []
    return {
        value: tuple(sorted([*own, *(found or _first_after(own, all_faults))], key=lambda op: op.index))
        for value, found in struck.items()
        for own in [history.about(value)]
    }


def _first_after(ops: Sequence[Op], faults: Sequence[Op]) -> Sequence[Op]:
    """Return the first of the faults, which are in order, that came after the last operation."""
    if not ops:
        return ()
    first = bisect_right(faults, max(op.time_ns for op in ops), key=lambda op: op.time_ns)
    return faults[first : first + 1]


@dataclass(frozen=True)
class Active:
    """The run did something: a publish was confirmed, and every nemesis struck while tasks ran.

    One that kills processes must have killed a running task, or name the delivery that it struck. One that
    strikes the whole system, such as a restart of the broker, may also have struck within half a second of a
    task's end, or while a confirmed message still waited for its effect: workers that were just killed run
    nothing at that moment.

    An idle run passes every other rule, so without this proof the verdict is ``UNKNOWN``. This is what
    Jepsen's ``stats`` checker guards against.

    Args:
        nemeses: The operations of the nemesis that must each have struck at least once.
    """

    nemeses: frozenset[str] = KILLS
    name = "active"

    def check(self, history: History) -> Finding:
        """Judge a history."""
        struck = hits(history, self.nemeses)
        confirmed = history.values("publish", "ok")
        doubts = [] if confirmed else [Anomalous("idle", None, "no publish was confirmed")]
        missed = self.nemeses - {hit.fault.f for hit in struck} - _at_work(history, self.nemeses)
        doubts += [_missed(history, nemesis) for nemesis in sorted(missed)]
        fired = len(faults(history, self.nemeses))
        verdict = Verdict.UNKNOWN if doubts else Verdict.VALID
        return Finding(self.name, verdict, tuple(doubts), {"faults": fired, "interrupted": len(struck)})


def _at_work(history: History, names: Collection[str]) -> set[str]:
    """Return the faults that struck the system at work, though perhaps no body just then."""
    ends = sorted(op.time_ns for op in history.of("end"))
    first = _first_effects(history)
    waits = [(op.time_ns, first.get(value, 0)) for value, op in history.named("publish", "ok")]

    def was_at_work(at_ns: int) -> bool:
        just_ended = bisect_right(ends, at_ns) > bisect_left(ends, at_ns - JUST_NS)
        return just_ended or any(confirmed < at_ns < effect for confirmed, effect in waits)

    return {
        fault.f
        for fault in faults(history, names)
        if "delivery" in fault.extra or (_pids(fault) is None and was_at_work(fault.time_ns))
    }


def _missed(history: History, nemesis: str) -> Anomalous:
    fired = faults(history, {nemesis})
    how = f"fired {len(fired)} times, but never at a running task" if fired else "never fired"
    return Anomalous("idle", None, f"{nemesis} {how}", tuple(fired))
