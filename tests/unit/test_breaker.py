"""A circuit opens after enough failures, is probed by one at a time, and closes when a probe succeeds."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlost.core.breaker import (
    Breaker,
    Circuit,
    CircuitState,
    counted,
    held,
    may_probe,
    probed,
    probing,
    released,
)
from unlost.errors import ConfigurationError, Permanent, RetryLater

BANK = Breaker(
    name="bank", failures=0.5, at_least=4, window=timedelta(seconds=20), pause=timedelta(seconds=3)
)
OPEN = Circuit(state=CircuitState.OPEN, until=3.0)


def after(*ends: tuple[float, int, int]) -> Circuit:
    """Return the circuit after so many attempts succeeded and failed at each moment."""
    circuit = Circuit()
    for now, ok, failed in ends:
        circuit = counted(circuit, BANK, ok=ok, failed=failed, now=now)
    return circuit


def test_enough_failures_open_it() -> None:
    """Half of four attempts are enough, and it says why."""
    circuit = after((100, 2, 2))
    assert (circuit.state, circuit.until) == (CircuitState.OPEN, 103)
    assert circuit.reason == "2 of 4 attempts failed"
    assert circuit.trips == 1


@pytest.mark.parametrize("ends", [[(100, 0, 3)], [(100, 3, 2)], [(100, 0, 3), (125, 0, 3)]])
def test_too_few_attempts_too_small_a_share_or_too_long_ago_do_not(
    ends: list[tuple[float, int, int]],
) -> None:
    """Three failures say nothing yet; two of five are below the share; the window forgets."""
    assert after(*ends).flows


def test_failures_on_both_sides_of_a_boundary_count_together() -> None:
    """The window has two halves, so that no burst falls between two windows."""
    assert not after((100, 0, 2), (111, 0, 2)).flows


def test_an_outage_opens_it_however_much_went_well_before() -> None:
    """So many failures with no success between them are enough: a busy window would hide an outage."""
    busy = ((100, 500, 0), (101, 0, 2))
    assert after(*busy, (102, 0, 1)).flows
    circuit = after(*busy, (102, 0, 2))
    assert (circuit.state, circuit.reason) == (CircuitState.OPEN, "the last 4 attempts failed")


@pytest.mark.parametrize("between", [(102, 1, 0), (102, 1, 3), (123, 0, 1)])
def test_a_success_or_a_window_between_them_ends_a_run_of_failures(between: tuple[float, int, int]) -> None:
    """Of attempts that were counted together nobody knows which came last: then there was a success."""
    assert after((100, 500, 0), (101, 0, 2), between, (between[0] + 1, 0, 2)).flows


def test_what_ends_while_it_is_open_tells_nothing() -> None:
    """Deliveries that began before it opened neither close it nor lengthen the pause."""
    assert counted(OPEN, BANK, ok=50, failed=0, now=1) == OPEN
    assert counted(OPEN, BANK, ok=0, failed=50, now=1) == OPEN


def test_one_worker_at_a_time_probes_and_only_after_the_pause() -> None:
    """The second finds the probe taken; a prober that does not answer is replaced."""
    assert not may_probe(OPEN, 2.9)
    assert probing(OPEN, BANK, "w1", 2.9) == OPEN
    first = probing(OPEN, BANK, "w1", 3.0)
    assert (first.state, first.prober) == (CircuitState.PROBING, "w1")
    assert probing(first, BANK, "w2", 4.0) == first
    assert probing(first, BANK, "w2", 33.0).prober == "w2"


def test_a_probe_closes_it_or_pauses_again() -> None:
    """Success lets all flow with an empty window; failure, or no message at all, waits for another pause."""
    probed_by_w1 = probing(OPEN, BANK, "w1", 3.0)
    assert probed(probed_by_w1, BANK, "w1", ok=True, now=4.0).flows
    for ok in (False, None):
        again = probed(probed_by_w1, BANK, "w1", ok=ok, now=4.0)
        assert (again.state, again.until, again.prober) == (CircuitState.OPEN, 7.0, None)


def test_the_answer_of_a_prober_that_was_replaced_does_not_count() -> None:
    """Nor does one after an operator's word."""
    second = probing(probing(OPEN, BANK, "w1", 3.0), BANK, "w2", 33.0)
    assert probed(second, BANK, "w1", ok=True, now=34.0) == second
    stopped = held(second, lasts=timedelta(hours=1), reason="maintenance", now=34.0)
    assert probed(stopped, BANK, "w2", ok=True, now=35.0) == stopped


def test_an_operators_hold_ends_by_itself_or_by_a_release() -> None:
    """Then one message is tried."""
    stopped = held(Circuit(), lasts=timedelta(seconds=60), reason="maintenance", now=10.0)
    assert (stopped.state, stopped.reason) == (CircuitState.HELD, "maintenance")
    assert not may_probe(stopped, 69.0)
    assert may_probe(stopped, 70.0)
    assert may_probe(released(stopped, 11.0), 11.0)
    assert released(Circuit(), 11.0) == Circuit()


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_it_never_opens_below_its_share(ends: list[tuple[float, int, int]]) -> None:
    """Whatever comes when: if it opens, so many attempts were counted and the share of them failed."""
    now, circuit = 0.0, Circuit()
    for wait, ok, failed in ends:
        now += wait
        before = replace(circuit, ok=circuit.ok + ok, failed=circuit.failed + failed)
        circuit = counted(circuit, BANK, ok=ok, failed=failed, now=now)
        if not circuit.flows:
            bad = before.failed + before.failed_before
            is_share = bad >= BANK.failures * BANK.at_least
            assert is_share or circuit.reason == "the last 4 attempts failed"
            assert failed > 0
            return


def test_what_speaks_against_a_dependency() -> None:
    """What is named, but not what a task raises about its own data or to be run later."""
    bank = Breaker(name="bank", on=(OSError,), never=(FileNotFoundError,))
    assert bank.counts(TimeoutError())
    assert not bank.counts(FileNotFoundError())
    assert not bank.counts(KeyError())
    everything = Breaker(name="bank")
    assert not everything.counts(Permanent())
    assert not everything.counts(RetryLater())


@pytest.mark.parametrize(
    "wrong", [{"name": ""}, {"failures": 0.0}, {"failures": 1.5}, {"at_least": 0}, {"pause": timedelta(0)}]
)
def test_a_breaker_out_of_range_is_refused(wrong: dict[str, object]) -> None:
    """A mistake shows where it is written."""
    with pytest.raises(ConfigurationError, match="Breaker"):
        Breaker(**{"name": "bank", **wrong})  # type: ignore[arg-type]
