"""Celery's own pool with one process on kombu's event loop, with our stand-ins; in a process of its own.

Run as ``python -m tests.support.pool_loop SCENARIO``; it prints what came of it. Numbers of pipes are what it
is about, so nothing else may open or close any.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from celery.concurrency.asynpool import AsynPool
from celery.signals import worker_process_init
from kombu.asynchronous import Hub, set_event_loop

from unlost.tasks.begun import Begun
from unlost.tasks.handover import Handover, drop_taken_back
from unlost.tasks.outcomes import Outcomes
from unlost.tasks.stranded import Watch


def echo(value: object) -> object:
    """Return what was given."""
    return value


def die() -> None:
    """Die with the job."""
    os.kill(os.getpid(), signal.SIGKILL)


def start() -> None:
    """Do what Celery does in a process that starts."""
    worker_process_init.send(sender=None)


class Loop:
    """The pool on its loop, as in a worker."""

    def __init__(self) -> None:
        self.hub = Hub()
        set_event_loop(self.hub)
        self.begun = Begun()
        worker_process_init.connect(self.begun.note_acceptances)
        self.results: list[Any] = []
        # Numbers below those of the first process's pipes; closed, they are its successor's.
        low = [os.open(os.devnull, os.O_RDONLY) for _ in range(16)]
        self.pool = AsynPool(1, threads=False, initializer=start)
        for number in low:
            os.close(number)
        self.pool.register_with_event_loop(self.hub)
        self.handover = Handover(self.pool, self.hub, self.begun)
        self.outcomes = Outcomes(self.pool, self.hub)
        self.stand_in()

    def stand_in(self) -> None:
        """Take the place of parts of the pool, as after each registration with the loop."""
        self.handover.install()
        self.outcomes.install()
        self.turns = self.hub.create_loop()
        self.turn_until(lambda: self.process)

    def reconnect(self) -> None:
        """Lose the broker, and find it again."""
        self.pool.flush()
        self.hub.reset()
        self.pool.register_with_event_loop(self.hub)
        self.stand_in()

    @property
    def process(self) -> Any:
        """The process that there is; none before it can take a job."""
        return next(iter(self.pool._fileno_to_inq.values()), None)

    def submit(self, body: Callable[..., Any], *args: Any) -> Any:
        """Have the pool do something; returns the job."""
        return self.pool.apply_async(
            body,
            args,
            callback=self.results.append,
            error_callback=lambda _failed: self.results.append("lost"),
            lost_worker_timeout=0.1,
        )

    def turn_until(self, is_so: Callable[[], object]) -> None:
        """Go round until something is so."""
        while not is_so():
            self.turn()

    def turn(self) -> None:
        """Go round once."""
        self.hub.call_later(0.02, lambda: None)
        next(self.turns)

    def run(self, body: Callable[..., Any], *args: Any) -> Any:
        """Have the pool do something, and return what came of it."""
        self.submit(body, *args)
        self.turn_until(lambda: self.results)
        return self.results.pop()

    def reuse_number(self) -> None:
        """Have the pipe of the process's jobs bear the number of a dead one's, and the loop begin anew."""
        dead = self.lose_process()
        assert not Path(f"/proc/self/fd/{dead.outqR_fd}").exists()
        os.dup2(self.process.inq._reader.fileno(), dead.outqR_fd)
        self.reconnect()

    def submit_to_stopped(self, body: Callable[..., Any], *args: Any) -> Any:
        """Stop the process and give it a job, which it does not read."""
        os.kill(self.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)
        job = self.submit(body, *args)
        self.turn_until(lambda: job._accepted)
        return job

    def run_late(self) -> str:
        """Give the process a job that it reads when the loop has gone round; returns what came of it."""
        job = self.submit_to_stopped(echo, "done")
        for _ in range(10):
            self.turn()
        return self.go_on(job)

    def go_on(self, job: Any) -> str:
        """Have the stopped process go on; returns what comes of a job."""
        os.kill(self.process.pid, signal.SIGCONT)
        watch = Watch(timedelta(seconds=1))
        self.turn_until(lambda: self.results or watch.stranded([job], self.handover.has_begun))
        return str(self.results.pop() if self.results else "stranded")

    def is_stranded(self, job: Any) -> bool:
        """Whether a job is taken for one that nobody runs, without patience."""
        return Watch(timedelta(0)).stranded([job], self.handover.has_begun) == [job]

    def lose_process(self) -> Any:
        """Have the process die with a job; returns it when its successor has come up."""
        dead = self.process
        assert self.run(die) == "lost"
        self.turn_until(lambda: self.process not in (None, dead))
        return dead


def reused_number(loop: Loop) -> object:
    """The number of a dead process's pipe is that of its successor's jobs when the loop begins anew."""
    loop.reuse_number()
    return loop.run_late()


def kept_number(loop: Loop) -> object:
    """The same while the pool forgets no number."""
    loop.pool.destroy_queues = partial(AsynPool.destroy_queues, loop.pool)
    loop.reuse_number()
    return loop.run_late()


def lost_meanwhile(loop: Loop) -> object:
    """A process dies with its job while the worker reconnects: how many more descriptors that leaves open."""
    before = _descriptors()
    loop.submit_to_stopped(echo, 1)
    os.kill(loop.process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, loop.process.pid, os.WEXITED | os.WNOWAIT)
    loop.reconnect()
    return _descriptors() - before


def stolen_job(loop: Loop) -> object:
    """A job is read from the pipe of its process by somebody else."""
    job = loop.submit_to_stopped(echo, "done")
    os.read(loop.process.inq._reader.fileno(), 1 << 16)
    return loop.go_on(job)


def late_job(loop: Loop) -> object:
    """The same without a thief."""
    return loop.go_on(loop.submit_to_stopped(echo, "done"))


def stopped_process(loop: Loop) -> object:
    """A process does not read its job, and then does; says for both whether the job is taken for stranded."""
    job = loop.submit_to_stopped(signal.pause)
    before = loop.is_stranded(job)
    os.kill(loop.process.pid, signal.SIGCONT)
    loop.turn_until(lambda: loop.begun.last(0) == job._job)
    return before, loop.is_stranded(job)


def taken_back(loop: Loop) -> object:
    """A process dies before it has read its job, while the worker reconnects; says whether that is found."""
    job = loop.submit_to_stopped(echo, 1)
    os.kill(loop.process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, loop.process.pid, os.WEXITED | os.WNOWAIT)
    loop.pool.flush()
    return drop_taken_back(loop.pool) == [job], len(loop.pool._cache)


def unread_job(loop: Loop) -> object:
    """A process dies before it has read its job; returns what came of that."""
    loop.submit_to_stopped(echo, 1)
    os.kill(loop.process.pid, signal.SIGKILL)
    loop.turn_until(lambda: loop.results)
    return loop.results.pop()


def _descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


SCENARIOS = {
    each.__name__: each
    for each in (
        reused_number,
        kept_number,
        lost_meanwhile,
        stolen_job,
        late_job,
        stopped_process,
        taken_back,
        unread_job,
    )
}


def main(scenario: str) -> None:
    """Run one, and leave without waiting for the process."""
    loop = Loop()
    print(SCENARIOS[scenario](loop), flush=True)
    for process in loop.pool._pool:
        os.kill(process.pid, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
