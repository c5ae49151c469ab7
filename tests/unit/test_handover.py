"""Jobs reach idle processes before the event loop waits, each in one write."""

from __future__ import annotations

import os
import select
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.pool import ACK, RUN, TASK, TERMINATE
from celery.concurrency.asynpool import SCHED_STRATEGY_FAIR, SCHED_STRATEGY_FCFS

from unlost.tasks.begun import NOTED, Begun
from unlost.tasks.handover import ATOMIC, Handover


class Job:
    """What billiard knows of a job."""

    _accepted = False
    _worker_pid: int | None = None
    _write_to: Any = None
    _scheduled_for: Any = None

    def __init__(self, number: int) -> None:
        self._job = number
        self._payload: Any = None

    def ready(self) -> bool:
        """Whether its result is there."""
        return False


class Process:
    """A process at the other end of a pipe."""

    def __init__(self, pipe: int, end: int) -> None:
        self.pid = 100 + pipe
        self.index = pipe
        self.inq = SimpleNamespace(_reader=SimpleNamespace(fileno=lambda: end))
        self.is_dead = False

    def _is_alive(self) -> bool:
        return not self.is_dead


class Pool:
    """As much of Celery's pool as a handover touches, with two processes whose pipes are real.

    ``own`` are the jobs that the pool has written itself, and ``asked`` says how often it was to write.
    """

    sched_strategy = SCHED_STRATEGY_FAIR
    _maxtasksperchild: int | None = None
    _max_memory_per_child: int | None = None

    def __init__(self) -> None:
        pairs = [os.pipe(), os.pipe()]
        self.ends = {writes: reads for reads, writes in pairs}
        for pipe in self.ends:
            os.set_blocking(pipe, False)
        self.first, self.second = self.ends
        processes = {pipe: Process(pipe, end) for pipe, end in self.ends.items()}
        self._fileno_to_inq = dict(processes)
        self._pool = [*processes.values()]
        self._state = RUN
        self._poolctrl = {process.pid: None for process in processes.values()}
        self._all_inqueues = set(self.ends)
        self._busy_workers: set[int] = set()
        self._active_writes: set[int] = set()
        self._cache: dict[int, Job] = {}
        self._quick_put = self._put
        self._result_handler = SimpleNamespace(state_handlers={ACK: self.accept})
        self.outbound_buffer: deque[Job] = deque()
        self.write_stats: Counter[int] = Counter()
        self.waits = 0
        self.asked = 0
        self.begun = Begun()
        self.buried: list[Process] = []
        self.told: list[Job] = []
        self.uncounted: list[int] = []
        self.own: list[int] = []
        self.parts: list[int | None] = []
        self.accepted: dict[int, int] = {}

    def _put(self, job: Any) -> None:
        _kind, (number, part, body) = job
        self.parts.append(part)
        length = len(body).to_bytes(4, "big")
        self._cache[number]._payload = memoryview(length), memoryview(body), len(body)
        self.outbound_buffer.append(self._cache[number])

    def add(self, *bodies: bytes) -> None:
        """Take jobs, as from a worker that has received tasks."""
        for body in bodies:
            number = len(self._cache) + 1
            self._cache[number] = Job(number)
            self._quick_put((TASK, (number, None, body)))

    def process_flush_queues(self, process: Process) -> None:
        """Read what a dead process has told: which jobs it has ended."""
        self.buried.append(process)
        for job in self.told:
            del self._cache[job._job]

    def on_timeout_cancel(self, job: Job) -> None:
        """Forget a job's time limits."""
        self.uncounted.append(job._job)

    def accept(self, number: int, part: int, _moment: float, pid: int, _pipe: None) -> None:
        """Note who has accepted a job."""
        assert part == NOTED
        self._cache[number]._accepted = True
        self._cache[number]._worker_pid = pid
        self.accepted[number] = pid

    def on_poll_start(self) -> None:
        """Wait for a pipe that can be written to, as the pool itself does."""
        self.waits += 1

    def write(self, ready: list[int]) -> None:
        """Write to pipes as the pool does, in parts; one that takes nothing is not ready for it."""
        self.asked += 1
        for pipe in ready:
            if select.select([], [pipe], [], 0)[1] and self.outbound_buffer:
                job = self.outbound_buffer.popleft()
                job._write_to = self._fileno_to_inq[pipe]
                self._busy_workers.add(pipe)
                self.own.append(job._job)

    def read(self, pipe: int) -> list[bytes]:
        """Return what a process has in its pipe, and make it idle."""
        found, data = [], b""
        while select.select([self.ends[pipe]], [], [], 0)[0]:
            data += os.read(self.ends[pipe], 1 << 20)
        while data:
            end = 4 + int.from_bytes(data[:4], "big")
            found.append(data[4:end])
            data = data[end:]
        self._busy_workers.discard(pipe)
        return found

    def fill(self, pipe: int) -> None:
        """Have a pipe take nothing more."""
        with suppress(BlockingIOError):
            while True:
                os.write(pipe, b"x" * ATOMIC)

    def empty(self, pipe: int) -> None:
        """Have it take all again."""
        os.read(self.ends[pipe], 1 << 20)


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool."""
    made = Pool()
    yield made
    for pipe, end in made.ends.items():
        os.close(pipe)
        os.close(end)


def handover_of(pool: Pool) -> Handover:
    """Return a handover in a pool's place."""
    hub = SimpleNamespace(on_tick={pool.on_poll_start}, consolidate_callback=pool.write)
    made = Handover(pool, hub, pool.begun)
    made.install()
    assert (hub.on_tick, hub.consolidate_callback) == ({made.before_waiting}, made.write)
    return made


@pytest.fixture
def handover(pool: Pool) -> Handover:
    """A handover in the pool's place."""
    return handover_of(pool)


def test_what_cannot_be_pickled_is_no_job_of_the_pools(pool: Pool, handover: Handover) -> None:
    """The pool would wait for its end, and it would be taken for lost."""
    pool._cache[1] = Job(1)
    with pytest.raises(TypeError):
        pool._quick_put((TASK, (1, None, None)))
    assert pool._cache == {}


def test_idle_processes_get_jobs_before_the_loop_waits(pool: Pool, handover: Handover) -> None:
    """One each, and none goes to a process that has one, or that is being written to."""
    pool.add(b"a", b"b", b"c")
    handover.before_waiting()
    assert sorted(pool.read(pool.first) + pool.read(pool.second)) == [b"a", b"b"]
    pool._busy_workers.add(pool.first)
    pool._active_writes.add(pool.second)
    handover.before_waiting()
    assert len(pool.outbound_buffer) == 1
    pool._active_writes.clear()
    handover.before_waiting()
    assert pool.read(pool.second) == [b"c"]


def test_the_kernel_is_asked_nothing_while_all_goes_well(pool: Pool, handover: Handover) -> None:
    """With fewer jobs than idle processes, and with jobs that wait for one to be done with another."""
    for jobs in ([], [b"a"], [b"b"], [b"c"]):
        pool.add(*jobs)
        handover.before_waiting()
    assert (pool.waits, pool.asked) == (0, 0)


def test_what_cannot_be_written_waits_as_the_pool_lets_it(pool: Pool, handover: Handover) -> None:
    """The pool registers its pipes until the job is gone, and takes them out again after it."""
    for pipe in pool.ends:
        pool.fill(pipe)
    pool.add(b"a")
    handover.before_waiting()
    handover.before_waiting()
    assert (pool.waits, pool.accepted) == (2, {})
    for pipe in pool.ends:
        pool.empty(pipe)
    handover.before_waiting()
    handover.before_waiting()
    assert (len(pool.outbound_buffer), pool.waits, set(pool.accepted)) == (0, 3, {1})


@pytest.mark.parametrize("size", [1, ATOMIC - 4])
def test_a_job_is_its_processs_as_soon_as_it_is_written_to_it(
    pool: Pool, handover: Handover, size: int
) -> None:
    """Before the process has said a word."""
    pool.add(b"x" * size)
    handover.before_waiting()
    assert (pool.accepted, pool.own) == ({1: pool._cache[1]._write_to.pid}, [])


@pytest.mark.parametrize("size", [ATOMIC - 3, 3 * ATOMIC])
def test_of_a_job_in_parts_a_process_says_that_it_has_all(pool: Pool, handover: Handover, size: int) -> None:
    """It may have only some when its worker stops or it dies; the pool has it once all the same."""
    pool.add(b"x" * size)
    assert len(pool.outbound_buffer) == 1
    handover.before_waiting()
    assert (pool.accepted, pool.own, pool.parts) == ({}, [1], [NOTED, None])


def bury(pool: Pool, job: Job) -> None:
    """Have a job's process die, and the pool see it."""
    job._write_to.is_dead = True
    pool.process_flush_queues(job._write_to)
    assert pool.buried == [job._write_to]


def test_what_a_dead_process_has_not_begun_is_nobodys(pool: Pool, handover: Handover) -> None:
    """The pool gives it to another, with time limits of its own: it has not begun."""
    # Registered with the loop once more, as after a lost connection.
    handover._hub.consolidate_callback, pool._quick_put = pool.write, pool._put
    handover.install()
    pool.add(b"a")
    handover.before_waiting()
    job = pool._cache[1]
    bury(pool, job)
    assert (job._accepted, job._worker_pid, pool.uncounted) == (False, None, [1])


@pytest.mark.parametrize("what", ["it had begun it", "it is alive", "the pool stops"])
def test_what_a_process_may_have_begun_stays_its_own(pool: Pool, handover: Handover, what: str) -> None:
    """It is a crash with the job; and so it is when the pool gives nothing to anybody any more."""
    pool.add(b"a")
    handover.before_waiting()
    job = pool._cache[1]
    if what == "it had begun it":
        pool.begun.note(job._write_to.index, job._job)
    elif what == "the pool stops":
        pool._state = TERMINATE
    job._write_to.is_dead = what != "it is alive"
    pool.process_flush_queues(job._write_to)
    assert (job._accepted, job._worker_pid) == (True, job._write_to.pid)


def test_what_a_dead_process_had_ended_is_not_done_again(pool: Pool, handover: Handover) -> None:
    """It had two jobs, and had told of the first when it began the second, with which it died."""
    pool.add(b"a", b"b")
    handover.before_waiting()
    first, second = pool._cache.values()
    second._write_to, second._worker_pid = first._write_to, first._worker_pid
    pool.begun.note(first._write_to.index, second._job)
    pool.told = [first]
    bury(pool, second)
    assert (first._accepted, second._accepted, pool.uncounted) == (True, True, [])


def test_what_nobody_waits_for_is_not_done_by_a_successor(pool: Pool, handover: Handover) -> None:
    """The time limit struck before the process had read the job: the pipe is the next one's, and empty."""
    pool.add(b"a")
    handover.before_waiting()
    job = pool._cache.pop(1)
    bury(pool, job)
    assert pool.read(pool.first) + pool.read(pool.second) == []


def test_a_process_has_begun_with_a_job_when_it_says_so(pool: Pool, handover: Handover) -> None:
    """Not by reading it, and no longer when the pool has buried it."""
    pool.add(b"a")
    handover.before_waiting()
    job = pool._cache[1]
    pool.read(job._write_to.index)
    assert not handover.has_begun(job)
    pool.begun.note(job._write_to.index, job._job)
    assert handover.has_begun(job)
    pool._poolctrl.clear()
    assert not handover.has_begun(job)


def test_a_process_that_says_itself_that_it_accepts_has_begun(pool: Pool, handover: Handover) -> None:
    """A job that was written in parts is accepted by a message."""
    pool.add(b"x" * ATOMIC)
    handover.before_waiting()
    job = pool._cache[1]
    job._worker_pid = job._write_to.pid
    assert handover.has_begun(job)


def test_a_job_that_was_put_back_is_not_the_dead_ones(pool: Pool, handover: Handover) -> None:
    """It still names the process it was written to; to be accepted, it must be written again."""
    pool.add(b"a")
    pool._cache[1]._write_to = Process(99, 98)
    for pipe in pool.ends:
        pool.fill(pipe)
    handover.before_waiting()
    assert pool.accepted == {}


@pytest.mark.parametrize("bound", ["_maxtasksperchild", "_max_memory_per_child"])
def test_what_a_process_on_its_way_out_has_is_its_successors(pool: Pool, bound: str) -> None:
    """Where processes are replaced all the time, only the one that has begun says that it has accepted."""
    setattr(pool, bound, 1)
    handover = handover_of(pool)
    pool.add(b"a")
    handover.before_waiting()
    assert (len(pool.outbound_buffer), pool.accepted) == (0, {})


def test_nothing_is_written_to_a_process_that_the_pool_has_buried(pool: Pool, handover: Handover) -> None:
    """Its pipe would take one job after the other, and nobody would do them."""
    del pool._poolctrl[pool._fileno_to_inq[pool.first].pid]
    pool.add(b"a", b"b")
    handover.before_waiting()
    assert (pool.read(pool.first), pool.read(pool.second)) == ([], [b"a"])
    assert (pool._all_inqueues, [*pool._fileno_to_inq]) == ({pool.second}, [pool.second])


@pytest.mark.parametrize(("size", "writes"), [(0, 1), (ATOMIC - 4, 1), (ATOMIC - 3, 2), (3 * ATOMIC, 2)])
def test_a_job_that_a_pipe_takes_whole_is_one_write(
    pool: Pool, handover: Handover, size: int, writes: int
) -> None:
    """The child reads it in one go; a larger one, of which a part may be written, is left in two."""
    assert handover is not None
    job = pool._cache[7] = Job(7)
    body = b"x" * size
    pool._quick_put((TASK, (7, None, body)))
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
