"""Settlement under every small set of faults, and the mutations that the model must find."""

from __future__ import annotations

import pytest

from tests.support.model import explore
from tests.support.world import Do, Faults, Protocol
from unlost.core.settlement import State

BUDGETS = [
    Faults(),
    Faults(crash=3),
    Faults(crash=2, unknown=1),
    Faults(crash=2, redrive=1),
    Faults(crash=1, expiry=1, duplicate=1),
    Faults(crash=1, expiry=1, redrive=1),
    Faults(crash=1, duplicate=1, unknown=1),
    Faults(crash=1, duplicate=1, redrive=1),
    Faults(unknown=1, duplicate=1, redrive=1),
    Faults(crash=1, redrive=2),
    Faults(crash=2, cancel=1),
    Faults(crash=1, duplicate=1, cancel=1),
    Faults(unknown=1, redrive=1, cancel=1),
]

#: Minutes each.
LARGE = [
    Faults(crash=2, unknown=1, duplicate=1),
    Faults(crash=1, unknown=1, duplicate=1, redrive=1),
    Faults(crash=2, expiry=1, redrive=1),
    Faults(crash=1, unknown=1, redrive=1, cancel=1),
]


@pytest.mark.parametrize("faults", BUDGETS, ids=str)
def test_settlement_keeps_every_invariant(faults: Faults) -> None:
    """No order of steps and faults loses, repeats, overspends, misleads or gets stuck."""
    found = explore(faults)

    assert not found.violations, f"\n{found}"


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("faults", LARGE, ids=str)
def test_settlement_keeps_every_invariant_under_many_faults(faults: Faults) -> None:
    """The same with more faults at once."""
    found = explore(faults)
    print(f"\n{faults}: {found.worlds} worlds")

    assert not found.violations, f"\n{found}"


def test_a_revoke_that_undoes_a_success_is_found() -> None:
    """Mutation control of cancelling: were done not final, a revoke would disown an effect."""
    found = explore(Faults(cancel=1), Protocol(done_is_final=False))

    assert "effect of a cancelled message" in found.violations


def test_the_model_reaches_the_rare_ends() -> None:
    """The budgets are large enough to spend all attempts and to poison a message."""
    assert explore(Faults(crash=2)).reasons == {
        (State.WAITING, "failed"),
        (State.DEAD, "failed"),
        (State.DEAD, "poison"),
    }


def test_publish_before_decide_is_found() -> None:
    """A letter published before its decision contradicts the attempt that follows a crash."""
    found = explore(Faults(crash=1), Protocol(on_failure=(Do.PUBLISH, Do.DECIDE, Do.MARK, Do.ACK)))

    assert found.violations["letter of a done message"] == [
        "0.1: acquire as 0.1",
        "0.1: body fails",
        "0.1: publish, confirmed",
        "0.1: decide waiting 0.2",
        "0.2: acquire as 0.2",
        "0.2: body fails",
        "0.2: publish, confirmed",
        "0.2: before decide, the worker is lost",
        "0.2: acquire as 0.2",
        "0.2: body commits",
    ]


def test_ack_before_publish_is_found() -> None:
    """A worker lost between its ack and its publish takes the message with it."""
    found = explore(Faults(crash=1), Protocol(on_failure=(Do.DECIDE, Do.ACK, Do.PUBLISH, Do.MARK)))

    assert found.violations["lost"] == [
        "0.1: acquire as 0.1",
        "0.1: body fails",
        "0.1: decide waiting 0.2",
        "0.1: ack",
        "0.1: before publish, the worker is lost",
    ]


def test_mark_by_attempt_number_is_found() -> None:
    """A late mark of a retry passes for the mark of the same attempt's letter, which is then never sent."""
    found = explore(Faults(crash=1), Protocol(marked_by_decision=False))

    assert found.violations["lost"] == [
        "0.1: acquire as 0.1",
        "0.1: body fails",
        "0.1: decide waiting 0.2",
        "0.1: publish, confirmed",
        "0.2: acquire as 0.2",
        "0.2: body fails",
        "0.2: decide dead 0.2",
        "0.1: mark sent",
        "0.1: ack",
        "0.2: before publish, the worker is lost",
        "0.2: superseded",
        "0.2: ack",
    ]


def test_completing_without_the_token_is_found() -> None:
    """A holder that was taken over commits its effect a second time."""
    found = explore(Faults(expiry=1), Protocol(token_checked=False))

    assert found.violations["effect twice"] == [
        "0.1: acquire as 0.1",
        "0.1: counted as crashed, but alive",
        "0.1: acquire as 0.1",
        "0.1: body commits",
        "0.1: body commits",
    ]


def test_no_mark_at_all_costs_only_copies() -> None:
    """Without the mark every decision may be published again, which the ledger absorbs."""
    found = explore(Faults(crash=1, duplicate=1), Protocol(on_failure=(Do.DECIDE, Do.PUBLISH, Do.ACK)))

    assert not found.violations, f"\n{found}"
