"""Jobs reach idle processes before the event loop waits, each in one write."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from celery.concurrency.asynpool import SCHED_STRATEGY_FAIR, SCHED_STRATEGY_FCFS

from unlost.tasks.handover import ATOMIC, Handover


class Pool:
    """As much of Celery's pool as a handover touches, with two processes; it writes when the hub says so.

    ``stuck`` are pipes that take nothing.
    """

    sched_strategy = SCHED_STRATEGY_FAIR

    def __init__(self) -> None:
        self.outbound_buffer: deque[str] = deque()
        self._all_inqueues = {3, 4}
        self._busy_workers: set[int] = set()
        self._active_writes: set[int] = set()
        self._cache: dict[int, Any] = {}
        self._quick_put = self._put
        self.waits = 0
        self.stuck: set[int] = set()
        self.given: dict[int, list[str]] = {3: [], 4: []}

    def _put(self, job: Any) -> None:
        number, body = job[1]
        length = len(body).to_bytes(4, "big")
        self._cache[number]._payload = memoryview(length), memoryview(body), len(body)

    def on_poll_start(self) -> None:
        """Wait for a pipe that can be written to, as the pool itself does."""
        self.waits += 1

    def write(self, ready: list[int]) -> None:
        """Give each of these processes a job."""
        for pipe in ready:
            if pipe not in self.stuck and self.outbound_buffer:
                self.given[pipe].append(self.outbound_buffer.popleft())
                self._busy_workers.add(pipe)


@pytest.fixture
def pool() -> Pool:
    """A pool."""
    return Pool()


@pytest.fixture
def handover(pool: Pool) -> Handover:
    """A handover in the pool's place."""
    hub = SimpleNamespace(on_tick={pool.on_poll_start}, consolidate_callback=pool.write)
    made = Handover(pool, hub)
    made.install()
    assert hub.on_tick == {made.before_waiting}
    return made


def test_what_cannot_be_pickled_is_no_job_of_the_pools(pool: Pool, handover: Handover) -> None:
    """The pool would wait for its end, and it would be taken for lost."""
    pool._cache[1] = SimpleNamespace(_payload=None)
    with pytest.raises(TypeError):
        pool._quick_put(("TASK", (1, None)))
    assert pool._cache == {}


def test_idle_processes_get_jobs_before_the_loop_waits(pool: Pool, handover: Handover) -> None:
    """One each, and none goes to a process that has one, or that is being written to."""
    pool.outbound_buffer.extend("abc")
    handover.before_waiting()
    assert (sorted([*pool.given[3], *pool.given[4]]), [*pool.outbound_buffer]) == (["a", "b"], ["c"])
    pool._busy_workers.discard(4)
    pool._active_writes.add(4)
    handover.before_waiting()
    assert [*pool.outbound_buffer] == ["c"]
    pool._active_writes.discard(4)
    handover.before_waiting()
    assert pool.given[4][-1] == "c"


def test_the_kernel_is_asked_nothing_while_all_goes_well(pool: Pool, handover: Handover) -> None:
    """Neither without jobs nor with jobs that wait for a process to be done with another."""
    for jobs in ("", "ab", "c"):
        pool.outbound_buffer.extend(jobs)
        handover.before_waiting()
    assert pool.waits == 0


def test_what_cannot_be_written_waits_as_the_pool_lets_it(pool: Pool, handover: Handover) -> None:
    """The pool registers its pipes until the job is gone, and takes them out again after it."""
    pool.stuck = {3, 4}
    pool.outbound_buffer.append("a")
    handover.before_waiting()
    handover.before_waiting()
    assert pool.waits == 2
    pool.stuck = set()
    handover.before_waiting()
    handover.before_waiting()
    assert (len(pool.outbound_buffer), pool.waits) == (0, 3)


@pytest.mark.parametrize(("size", "writes"), [(0, 1), (ATOMIC - 4, 1), (ATOMIC - 3, 2), (3 * ATOMIC, 2)])
def test_a_job_that_a_pipe_takes_whole_is_one_write(
    pool: Pool, handover: Handover, size: int, writes: int
) -> None:
    """The child reads it in one go; a larger one, of which a part may be written, is left in two."""
    assert handover is not None
    job = pool._cache[7] = SimpleNamespace()
    body = b"x" * size
    pool._quick_put((0, (7, body)))
    first, second, rest = job._payload
    assert bytes(first) + bytes(second) == size.to_bytes(4, "big") + body
    assert rest == len(second)
    assert 1 + (rest > 0) == writes


@pytest.mark.parametrize(
    ("pool", "applies"),
    [
        (SimpleNamespace(sched_strategy=SCHED_STRATEGY_FAIR), True),
        (SimpleNamespace(sched_strategy=SCHED_STRATEGY_FCFS), False),
        (SimpleNamespace(), False),
        (None, False),
    ],
)
def test_only_a_pool_that_gives_each_process_one_job_is_helped(pool: Any, applies: bool) -> None:
    """With ``-O fast`` a process is given the next job while it has one; threads have no pipes."""
    assert Handover.applies_to(pool) is applies
