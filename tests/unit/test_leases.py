"""The keeper renews what runs, and only that."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Collection
from datetime import timedelta
from typing import cast

import pytest

from tests.support.processes import PATIENCE, sleeper, wait_for_state
from unlost.core.ports import Ledger
from unlost.errors import StoreUnavailable
from unlost.tasks.leases import LeaseKeeper
from unlost.testing.waiting import wait_until

LEASE = timedelta(hours=1)


class Renewals:
    """The one method of a ledger that a keeper calls; remembers what it was asked."""

    def __init__(self, *errors: Exception) -> None:
        self.asked: list[set[str]] = []
        self.lease: timedelta | None = None
        self._errors = list(errors)

    def renew(self, holders: Collection[str], lease: timedelta) -> None:
        """Remember, and fail as often as told."""
        self.asked.append(set(holders))
        self.lease = lease
        if self._errors:
            raise self._errors.pop(0)


def keeper_of(renewals: Renewals, lease: timedelta = LEASE) -> LeaseKeeper:
    """Return a keeper; with the long lease its thread never comes to renew by itself."""
    return LeaseKeeper(cast(Ledger, renewals), lease)


def renewed(keeper: LeaseKeeper, renewals: Renewals) -> set[str]:
    """Renew once and return for whom."""
    keeper.renew()
    return renewals.asked[-1]


def test_running_holders_are_renewed_in_one_statement() -> None:
    """All holders with a running process are renewed together, for a whole lease."""
    renewals = Renewals()
    keeper = keeper_of(renewals)
    with sleeper() as process:
        keeper.add("own", os.getpid())
        keeper.add("child", process.pid)

        assert renewed(keeper, renewals) == {"own", "child"}
        assert renewals.lease == LEASE


def test_a_stopped_process_is_not_renewed() -> None:
    """A process that cannot go on loses its lease, and gets it renewed once it goes on."""
    renewals = Renewals()
    keeper = keeper_of(renewals)
    with sleeper() as process:
        keeper.add("child", process.pid)
        process.send_signal(signal.SIGSTOP)
        wait_for_state(process.pid, "T")
        assert renewed(keeper, renewals) == set()

        process.send_signal(signal.SIGCONT)
        wait_for_state(process.pid, "RS")
        assert renewed(keeper, renewals) == {"child"}


def test_a_dead_process_is_not_renewed() -> None:
    """Neither a zombie nor a process that is gone keeps its lease."""
    renewals = Renewals()
    keeper = keeper_of(renewals)
    with sleeper() as process:
        keeper.add("child", process.pid)
        process.kill()
        wait_for_state(process.pid, "Z")
        assert renewed(keeper, renewals) == set()

        process.wait()
        assert renewed(keeper, renewals) == set()


def test_a_green_thread_is_renewed() -> None:
    """A pool whose "pid" is no process is trusted until its request is settled."""
    renewals = Renewals()
    keeper = keeper_of(renewals)
    keeper.add("greenlet", 140_000_000_000_000)

    assert renewed(keeper, renewals) == {"greenlet"}


def test_a_dropped_holder_is_not_renewed() -> None:
    """A settled delivery's lease is left alone; dropping it twice does no harm."""
    renewals = Renewals()
    keeper = keeper_of(renewals)
    keeper.add("one", os.getpid())
    keeper.add("two", os.getpid())
    keeper.drop("one")
    keeper.drop("one")

    assert renewed(keeper, renewals) == {"two"}


@pytest.mark.parametrize("error", [StoreUnavailable("the store is locked"), RuntimeError("locked")])
def test_a_store_that_fails_is_survived(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a renewal raises is logged, and the store is asked again at the next turn."""
    renewals = Renewals(error)
    keeper = keeper_of(renewals)
    keeper.add("own", os.getpid())

    with caplog.at_level(logging.WARNING):
        assert renewed(keeper, renewals) == {"own"}
    assert "locked" in caplog.text
    assert renewed(keeper, renewals) == {"own"}


def keep_all(renewals: Renewals) -> LeaseKeeper:
    """Return a keeper that renews every few milliseconds."""
    return keeper_of(renewals, timedelta(milliseconds=15))


def test_the_thread_renews_until_dropped() -> None:
    """The keeper's own thread renews again and again, over a failing store, and stops at a drop."""
    renewals = Renewals(StoreUnavailable("down"), StoreUnavailable("down"))
    keeper = keep_all(renewals)
    keeper.add("own", os.getpid())
    wait_until(lambda: renewals.asked.count({"own"}) > 3, PATIENCE, "the lease was renewed again")

    keeper.drop("own")
    wait_until(lambda: renewals.asked[-1] == set(), PATIENCE, "the lease is renewed no more")
