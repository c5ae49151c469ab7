"""A dependency that is down for half a minute under load costs probes, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.gates import Gated, gated
from tests.support.workers import ROOT
from unlost.testing.brokers import Vhost
from unlost.testing.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.one_broker]

A_SECOND = 20
OUTAGE = timedelta(seconds=30)
MESSAGES = 1100

#: Failures that open the breaker, and what two workers of two processes have in hand then.
BEFORE = 4 + 4

LOAD = f"""
import time
import tests.support.gated as m
begun = time.monotonic()
for n in range({MESSAGES}):
    time.sleep(max(0, begun + n / {A_SECOND} - time.monotonic()))
    m.pay.delay(n)
"""


def test_an_outage_of_half_a_minute_under_load(vhost: Vhost, tmp_path: Path) -> None:
    """Only probes burn attempts, the queue waits, and within 5 s of the end it flows as before."""
    with gated(vhost, tmp_path) as bank:
        bank.start()
        bank.start()
        load = subprocess.Popen([sys.executable, "-c", LOAD], env=bank.environment, cwd=ROOT)
        bank.wait_for(lambda: len(bank.paid()) > 5 * A_SECOND, "it flows")
        bank.take_down()
        down = time.time()
        wait_until(lambda: time.time() - down > OUTAGE.total_seconds(), 2 * OUTAGE, "the outage is over")
        waiting = bank.depth("g.bank")
        bank.bring_back()
        back = time.time()
        bank.wait_for(lambda: bank.paid() == set(range(MESSAGES)), "all are paid", timedelta(minutes=3))
        assert load.wait() == 0
        probes = sum(bank.log(number).count("with one message") for number in range(2))
        recovery = seconds_until_it_flows(bank, back)
        print(
            f"{bank.failures()} attempts failed, {probes} probes, {waiting} waited in the queue, "
            f"{A_SECOND} a second again {recovery:.1f} s after the outage"
        )
        assert bank.failures() <= BEFORE + probes
        assert waiting > A_SECOND * (OUTAGE.total_seconds() - 10)
        assert bank.letters("g.bank.dlq") == []
        assert recovery <= 5


def seconds_until_it_flows(bank: Gated, back: float) -> float:
    """Return when, after the outage, as many payments as before were made within a second."""
    paid = [float(line["at_ms"]) / 1000 for line in bank.traces("pay") if not line["failed"]]
    after = [at - back for at in paid if at >= back]
    return next(end for begin, end in zip(after, after[A_SECOND - 1 :], strict=False) if end - begin <= 1.0)
