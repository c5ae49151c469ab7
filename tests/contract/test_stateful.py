"""Any sequence of operations does to every store what it does to the model, the store in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests.support.stores import ALL, Servers, fresh_url, time_machine
from unlost.core.headers import Failure
from unlost.core.ids import Generation, MessageId
from unlost.core.keys import Claim
from unlost.core.ports import Ledger
from unlost.core.settlement import Delivery, Held, Limits, Row, Superseded
from unlost.errors import LeaseLost
from unlost.idempotency.memory import MemoryStore
from unlost.idempotency.open import open_store

#: So long that the time which the test itself takes decides nothing.
LEASE = timedelta(seconds=1000)
LIMITS = Limits(max_crashes=2, max_lost=3)
FAILURE = Failure("retry", "E", "text")

messages = st.sampled_from(["a", "b"])
holders = st.sampled_from(["h1", "h2", "h3"])
generations = st.builds(Generation, st.integers(0, 1), st.integers(1, 3))


class Pair(NamedTuple):
    """The same row as the model and as the store returned it."""

    message: str
    rows: tuple[Row, Row]


class Clock:
    """The model's time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.seconds


def comparable(value: Any) -> Any:
    """Return what must be equal: without ids that are drawn, and without moments."""
    if isinstance(value, Row):
        # When a lease ends is compared by what ends it: time that passes, and who is held off then.
        failure = value.failure and replace(value.failure, failed_at_ms=0)
        return value._replace(decision=value.decision and "?", expires=0.0, started_ms=0, failure=failure)
    if isinstance(value, Held):
        return "held"
    if value is None or isinstance(value, bool | str):
        return value
    return type(value).__name__, comparable(value.row)


class Machine(RuleBasedStateMachine):
    """Does the same to both, and compares what they say and what they keep."""

    ledger: Ledger
    pass_time: Callable[[float], None]
    names = itertools.count()

    leases = Bundle("leases")
    decisions = Bundle("decisions")

    @initialize()
    def begin(self) -> None:
        """Begin with messages that nobody has seen."""
        self.clock = Clock()
        self.model = MemoryStore(self.clock)
        self.world = str(next(self.names))

    def _id(self, message: str) -> MessageId:
        return MessageId("shop.charge", f"{self.world}-{message}")

    def _holder(self, holder: str) -> str:
        return f"{self.world}-{holder}"

    def _both(self, act: Callable[[Ledger, int], Any]) -> tuple[Any, Any]:
        """Do it to both; what one of them refuses the other must refuse."""
        answers = []
        for place, ledger in enumerate((self.model, self.ledger)):
            try:
                answers.append(act(ledger, place))
            except LeaseLost:
                answers.append("lost")
        model, real = answers
        assert comparable(real) == comparable(model)
        for each in map(self._id, ("a", "b")):
            assert comparable(self.ledger.read(each)) == comparable(self.model.read(each))
        return model, real

    @rule(target=leases, message=messages, generation=generations, holder=holders)
    def acquire(self, message: str, generation: Generation, holder: str) -> Any:
        """Bring a delivery."""
        delivery = Delivery(message=self._id(message), generation=generation, holder=self._holder(holder))
        model, real = self._both(lambda ledger, _: ledger.acquire(delivery, lease=LEASE, limits=LIMITS))
        if isinstance(model, Held | Superseded):
            return multiple()
        return Pair(message, (model.row, real.row))

    @rule(lease=leases, result=st.sampled_from([None, '"x"']))
    def complete(self, lease: Pair, result: str | None) -> None:
        """Complete under a lease, fresh or stale."""
        self._both(lambda ledger, place: ledger.complete(self._id(lease.message), lease.rows[place], result))

    @rule(lease=leases, claimed=leases)
    def complete_with_key(self, lease: Pair, claimed: Pair) -> None:
        """Complete a message and the key that it holds."""
        if lease.message == claimed.message:
            return

        def act(ledger: Ledger, place: int) -> None:
            claim = Claim(self._id(claimed.message), claimed.rows[place], "f", self._id(lease.message))
            ledger.complete(self._id(lease.message), lease.rows[place], '"x"', None, claim)

        if self._key_first_then_message(lease, claimed):
            self._both(act)

    def _key_first_then_message(self, lease: Pair, claimed: Pair) -> bool:
        """Whether both leases stand, or the key's does not: without transactions a store stops half-way."""
        row = self.model.read(self._id(lease.message))
        key = self.model.read(self._id(claimed.message))
        stands = row is not None and row.state == "leased" and row.token == lease.rows[0].token
        key_stands = key is not None and key.state == "leased" and key.token == claimed.rows[0].token
        return stands or not key_stands

    @rule(target=decisions, lease=leases)
    def decide_waiting(self, lease: Pair) -> Any:
        """Decide a retry under a lease, fresh or stale."""
        return lease.message, self._both(
            lambda ledger, place: ledger.decide_waiting(
                self._id(lease.message), lease.rows[place], due_ms=1, failure=FAILURE
            )
        )

    @rule(target=decisions, lease=leases)
    def decide_dead(self, lease: Pair) -> Any:
        """Decide a letter under a lease, fresh or stale."""
        dead = lambda ledger, place: ledger.decide_dead(  # noqa: E731
            self._id(lease.message), lease.rows[place], failure=FAILURE
        )
        return lease.message, self._both(dead)

    @rule(decided=decisions)
    def mark_sent(self, decided: Any) -> None:
        """Mark a decision as sent, however late."""
        message, rows = decided
        if "lost" not in rows:
            self._both(lambda ledger, place: ledger.mark_sent(self._id(message), rows[place].decision))

    @rule(lease=consumes(leases), holder=holders, note=st.sampled_from([None, '"n"']))
    def hand_over(self, lease: Pair, holder: str, note: str | None) -> None:
        """Give a lease to another."""
        to = self._holder(holder)
        self._both(
            lambda ledger, place: ledger.hand_over(
                self._id(lease.message), lease.rows[place], to=to, lease=LEASE, note=note
            )
        )

    @rule(given=st.sets(holders))
    def renew(self, given: set[str]) -> None:
        """Renew some holders' leases."""
        self._both(lambda ledger, _: ledger.renew([self._holder(each) for each in given], LEASE))

    @rule(holder=holders)
    def end_crashed(self, holder: str) -> None:
        """See a holder dead."""
        self._both(lambda ledger, _: ledger.end_crashed(self._holder(holder)))

    @rule(holder=holders)
    def release(self, holder: str) -> None:
        """Let a holder go."""
        self._both(lambda ledger, _: ledger.release(self._holder(holder)))

    @rule(message=messages, generation=generations)
    def cancel(self, message: str, generation: Generation) -> None:
        """Revoke a message."""
        self._both(lambda ledger, _: ledger.cancel(self._id(message), generation))

    @rule(seconds=st.sampled_from([400.0, 700.0]))
    def let_time_pass(self, seconds: float) -> None:
        """Let leases grow older."""
        self.clock.seconds += seconds
        self.pass_time(seconds)


@pytest.fixture
def ledger(request: pytest.FixtureRequest, store_servers: Servers, tmp_path: Path) -> Iterator[Ledger]:
    """Open an empty store of a kind."""
    with ExitStack() as stack:
        store = open_store(fresh_url(request.param, store_servers, tmp_path, stack))
        store.create_schema()
        yield store
        store.close()


@pytest.mark.parametrize("ledger", ALL, indirect=True)
def test_a_message_that_is_done_without_its_key_does_not_take_it(ledger: Ledger) -> None:
    """Its key has ended otherwise meanwhile: whoever completes both is told so."""
    message, key = MessageId("shop.charge", "m"), MessageId("shop.charge", "k")

    def lease_of(which: MessageId) -> Row:
        delivery = Delivery(message=which, generation=Generation(0, 1), holder=f"h-{which.id}")
        return ledger.acquire(delivery, lease=LEASE, limits=LIMITS).row  # type: ignore[union-attr]

    lease, held = lease_of(message), lease_of(key)
    ledger.complete(message, lease, '"x"')
    ledger.decide_dead(key, held, failure=FAILURE)
    with pytest.raises(LeaseLost):
        ledger.complete(message, lease, '"x"', None, Claim(key, held, "f", message))


@pytest.mark.parametrize("ledger", ALL, indirect=True)
def test_every_store_does_as_the_model(ledger: Ledger) -> None:
    """Grants, refusals and rows agree after every step, also for holders that are late."""
    run(ledger)


def test_a_store_without_fencing_is_found() -> None:
    """A store that lets a late holder write what it likes does not pass."""

    class Careless(MemoryStore):
        """Writes whoever holds the lease."""

        def _replace(self, message: str, before: Row, same: tuple[str, ...], row: Row, *how: Any) -> bool:  # noqa: ARG002
            return super()._replace(message, before, (), row, *how)

    with pytest.raises(AssertionError):
        run(Careless(), phases=[Phase.generate])


def run(ledger: Ledger, **options: Any) -> None:
    """Try many sequences on a store."""

    class OnStore(Machine):
        """On this store."""

    OnStore.ledger = ledger
    OnStore.pass_time = staticmethod(time_machine(ledger))
    run_state_machine_as_test(
        OnStore,
        settings=settings(
            max_examples=30,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[*HealthCheck],
            **options,
        ),
    )
