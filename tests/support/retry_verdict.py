"""What the starts of a run of retries prove: none lost, none early, each on its own queue as it was."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.traces import read
from unlost.core import headers as h

#: The clocks of two processes of one host differ by the resolution in which they are written.
TICK_MS = 2.0

#: What the next attempt may say differently from the first.
OF_THE_ATTEMPT = frozenset({h.ATTEMPT, h.DUE, "retries", h.HOLDS})

#: Written by the broker onto whatever it moves.
OF_THE_BROKER = (
    "x-death",
    "x-first-death-",
    "x-last-death-",
    "x-delivery-count",
    "x-acquired-count",
    "x-opt-",
)


@dataclass(frozen=True)
class Start:
    """A body that began: of which message and attempt, when, from which queue, and what the message said."""

    number: int
    attempt: int
    at_ms: float
    after_ms: int
    queue: str
    headers: Mapping[str, Any]
    properties: Mapping[str, Any]


@dataclass(frozen=True)
class Window:
    """A time in which nothing could start, epoch milliseconds."""

    begin_ms: float
    end_ms: float


@dataclass(frozen=True)
class Lateness:
    """How long after the broker let go of it each retry began, in seconds, the shortest first.

    A delay of whole seconds leaves the path when it is due; any other is rounded up to the next second.
    """

    seconds: Sequence[float]

    def quantile(self, share: float) -> float:
        """Return the value that this share of the retries does not exceed."""
        return self.seconds[min(len(self.seconds) - 1, math.ceil(share * len(self.seconds)) - 1)]


def read_starts(folder: Path) -> list[Start]:
    """Return all starts that were written whole, in the order of time."""
    return [Start(**line) for line in read(folder)]


def problems_of(starts: Iterable[Start], sent: Mapping[int, str]) -> list[str]:
    """Return what is wrong with a run, at most one sentence for each message.

    Args:
        starts: What began.
        sent: The queue that each message was sent to.
    """
    first, last = _ends(starts)
    return [
        problem
        for number, queue in sent.items()
        if (problem := _problem_of(first.get(number), last.get(number), queue, number))
    ]


def _problem_of(first: Start | None, last: Start | None, queue: str, number: int) -> str | None:
    if first is None or last is None:
        return f"{number} was lost: " + ("its first attempt" if first is None else "its retry") + " never ran"
    due = last.headers.get(h.DUE)
    if due is None:
        return f"{number} does not say when it was due"
    if last.at_ms < due - TICK_MS or due < first.at_ms + first.after_ms - TICK_MS:
        return f"{number} was early: due {due}, asked {first.at_ms + first.after_ms}, started {last.at_ms}"
    if (first.queue, last.queue) != (queue, queue):
        return f"{number} was sent to {queue}, and came from {first.queue}, then {last.queue}"
    if changed := _changed(first, last):
        return f"{number} is another message: {changed}"
    return None


def _changed(first: Start, last: Start) -> str:
    one, two = _lasting(first.headers), _lasting(last.headers)
    one |= {name: value for name, value in first.properties.items() if _is_ours(name)}
    two |= {name: value for name, value in last.properties.items() if _is_ours(name)}
    return ", ".join(
        f"{name}: {one.get(name)!r} -> {two.get(name)!r}"
        for name in sorted(one.keys() | two.keys())
        if one.get(name) != two.get(name)
    )


def _is_ours(name: str) -> bool:
    # The id is message.redrives.attempt; where it came by belongs to the delivery.
    return name not in ("message_id", "delivery_info", "delivery_tag")


def _lasting(headers: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in headers.items()
        if name not in OF_THE_ATTEMPT and not name.startswith(OF_THE_BROKER)
    }


def made_up_for(starts: Iterable[Start], outage: Window) -> Window:
    """Return an outage and what it takes until all retries that come due in a second are on time again."""
    first, last = _ends(starts)
    worst: dict[int, float] = {}
    for number, retry in last.items():
        if number in first and (due := retry.headers.get(h.DUE)) is not None:
            second = int(due) // 1000
            worst[second] = max(worst.get(second, 0.0), _late_by(first[number], retry))
    on_time = [second * 1000.0 for second, late in worst.items() if late < 1]
    ends = [moment for moment in on_time if moment >= outage.end_ms]
    return Window(outage.begin_ms, min(ends, default=math.inf))


def lateness(starts: Iterable[Start], *, apart: Sequence[Window] = ()) -> Lateness:
    """Return how late the retries were that came due outside of some windows of time."""
    first, last = _ends(starts)
    found = []
    for number, start in last.items():
        began = first.get(number)
        due = start.headers.get(h.DUE)
        if began is None or due is None or any(_lies_in(due, each) for each in apart):
            continue
        found.append(_late_by(began, start))
    return Lateness(sorted(found))


def _late_by(first: Start, retry: Start) -> float:
    rounding = -first.after_ms % 1000
    return float(retry.at_ms - retry.headers[h.DUE] - rounding) / 1000


def _lies_in(due: float, window: Window) -> bool:
    return window.begin_ms - 1000 <= due <= window.end_ms


def most_due_in_a_second(starts: Iterable[Start]) -> int:
    """Return how many retries were due in the second in which most were."""
    _, last = _ends(starts)
    seconds = [int(start.headers.get(h.DUE, 0)) // 1000 for start in last.values()]
    return max(map(seconds.count, set(seconds)), default=0)


def _ends(starts: Iterable[Start]) -> tuple[dict[int, Start], dict[int, Start]]:
    """Return each message's last start of its first attempt, which asked for more, and the first after it."""
    first: dict[int, Start] = {}
    last: dict[int, Start] = {}
    for start in sorted(starts, key=lambda each: each.at_ms):
        if start.attempt == 1:
            first[start.number] = start
        else:
            last.setdefault(start.number, start)
    return first, last
