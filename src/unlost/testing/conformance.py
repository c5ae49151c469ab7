"""What every ledger must do, as a pytest suite that a store of your own can run too.

::

    from unlost.testing.conformance import LedgerConformance

    class TestMyStore(LedgerConformance):
        can = frozenset()                    # "unit_of_work" if business rows can join its transaction

        @pytest.fixture
        def ledger(self):
            return MyStore(...)              # empty

        @pytest.fixture
        def pass_time(self, ledger):
            return lambda seconds: ...       # let leases grow older by so much; without, the suite sleeps

Needs pytest (``pip install 'unlost[chaos]'``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, ClassVar

import pytest

from unlost.core.headers import Failure
from unlost.core.ids import Generation, MessageId
from unlost.core.keys import Claim, key_id, recorded
from unlost.core.ports import Ledger
from unlost.core.settlement import (
    Admission,
    AlreadyDone,
    Delivery,
    Held,
    Limits,
    Resend,
    Row,
    Run,
    State,
    Superseded,
)
from unlost.core.uniqueness import unique_id
from unlost.errors import ConfigurationError, LeaseLost
from unlost.idempotency.holder import make_holder

MESSAGE = MessageId("shop.charge", "m")
OTHER = MessageId("shop.charge", "n")
FIRST = Generation(0, 1)
REDRIVEN = Generation(1, 1)
LEASE = timedelta(seconds=15)
FAILURE = Failure("retry", "shop.Timeout", "slow \ud800 ü \x00", "Traceback", "host:1", 7)

PassTime = Callable[[float], None]


def acquire(
    ledger: Ledger,
    message: MessageId = MESSAGE,
    generation: Generation = FIRST,
    holder: str | None = None,
    limits: Limits = Limits(),  # noqa: B008 - a frozen value
) -> Admission:
    """Acquire as a delivery of this process."""
    delivery = Delivery(message=message, generation=generation, holder=holder or make_holder())
    return ledger.acquire(delivery, lease=LEASE, limits=limits)


def granted(ledger: Ledger, message: MessageId = MESSAGE, **more: Any) -> Row:
    """Acquire, and return the lease that must have been granted."""
    admission = acquire(ledger, message, **more)
    assert isinstance(admission, Run), admission
    return admission.row


def read(ledger: Ledger, message: MessageId = MESSAGE) -> Row:
    """Return a row that must be there."""
    row = ledger.read(message)
    assert row is not None
    return row


def timeless(row: Row) -> Row:
    """Return a row without the moment at which its lease ends."""
    return row._replace(expires=0.0)


class LedgerConformance:
    """Subclass it, and say where an empty ledger comes from."""

    #: What the store offers beyond the least: ``unit_of_work``.
    can: ClassVar[frozenset[str]] = frozenset()

    @pytest.fixture
    def ledger(self) -> Ledger:
        """Return an empty ledger."""
        raise NotImplementedError("define the fixture 'ledger' in your subclass")

    @pytest.fixture
    def pass_time(self) -> PassTime:
        """Return a function that lets so many seconds pass for the store."""
        return time.sleep

    # --- acquire

    def test_a_new_message_is_leased(self, ledger: Ledger) -> None:
        """The first delivery is granted a lease, and the row says by whom."""
        row = granted(ledger, holder="me")

        assert read(ledger) == row
        assert (row.state, row.generation, row.holder) == (State.LEASED, FIRST, "me")
        assert row.expires > LEASE.total_seconds()

    def test_a_message_nobody_acquired_has_no_row(self, ledger: Ledger) -> None:
        """Absence is reported as absence."""
        assert ledger.read(MESSAGE) is None

    def test_a_second_acquire_is_held(self, ledger: Ledger, pass_time: PassTime) -> None:
        """While the lease lives a copy is held for its rest, and nothing is written."""
        row = granted(ledger)
        pass_time(1)

        admission = acquire(ledger)

        assert isinstance(admission, Held)
        assert 0 < admission.remaining <= LEASE.total_seconds() - 1
        assert timeless(read(ledger)) == timeless(row)

    def test_a_repeated_acquire_is_granted_again(self, ledger: Ledger) -> None:
        """A delivery whose answer was lost and that asks again has the lease that it was granted."""
        row = granted(ledger, holder="me")

        assert granted(ledger, holder="me") == row
        assert read(ledger) == row

    def test_an_expired_lease_is_taken_over(self, ledger: Ledger, pass_time: PassTime) -> None:
        """Expiry permits a takeover even from a living holder, and is counted."""
        first = granted(ledger)
        pass_time(15.5)

        second = granted(ledger)

        assert second.token > first.token
        assert second.lost == 1

    def test_messages_do_not_touch_each_other(self, ledger: Ledger) -> None:
        """Task, id and nesting make the message, to the letter; each has a lease of its own."""
        others = [
            OTHER,
            MessageId("shop.refund", "m"),
            MessageId("shop.charge", "m", 1),
            MessageId("shop.charge", "M"),
            MessageId("shop.charge", "m "),
            MessageId("shop.charge", "m̈"),
        ]
        granted(ledger)

        assert all(isinstance(acquire(ledger, other), Run) for other in others)

    def test_a_long_name_is_kept(self, ledger: Ledger) -> None:
        """The longest names that an envelope may have make a message of their own."""
        long = MessageId("t" * 230, "i" * 229 + "1", 3)
        granted(ledger, long)

        assert isinstance(acquire(ledger, long._replace(id="i" * 229 + "2")), Run)
        assert isinstance(acquire(ledger, long), Held)

    def test_poison_is_recorded(self, ledger: Ledger) -> None:
        """A message that crashed too often is decided dead by the acquire that found it so."""
        granted(ledger, holder="me")
        ledger.end_crashed("me")

        admission = acquire(ledger, limits=Limits(max_crashes=1))

        assert isinstance(admission, Resend)
        assert read(ledger) == admission.row
        assert read(ledger).state is State.DEAD

    def test_one_of_many_threads_is_granted(self, ledger: Ledger) -> None:
        """However many acquire at once, a message has one holder, and nobody waits for ever."""
        start = threading.Barrier(8)
        admissions: list[Admission] = []

        def compete() -> None:
            start.wait(60)
            admissions.extend(acquire(ledger, MessageId("shop.charge", str(n))) for n in range(20))

        threads = [threading.Thread(target=compete) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(admissions) == 160
        assert sum(isinstance(admission, Run) for admission in admissions) == 20

    # --- done

    def test_done_is_done(self, ledger: Ledger, pass_time: PassTime) -> None:
        """A completed message keeps its result and is never run again, not even redriven."""
        ledger.complete(MESSAGE, granted(ledger), '{"paid": 5}')
        pass_time(20)

        for generation in (FIRST, REDRIVEN):
            admission = acquire(ledger, generation=generation)
            assert isinstance(admission, AlreadyDone)
            assert admission.row.result == '{"paid": 5}'

    def test_a_result_may_be_nothing(self, ledger: Ledger) -> None:
        """No result is kept as no result."""
        ledger.complete(MESSAGE, granted(ledger), None)

        assert read(ledger).result is None

    def test_a_result_may_be_large(self, ledger: Ledger) -> None:
        """A result of 300 kB comes back whole."""
        large = '"' + "ü\N{PILE OF POO}" * 50_000 + '"'
        ledger.complete(MESSAGE, granted(ledger), large)

        assert read(ledger).result == large

    def test_done_stays_done(self, ledger: Ledger) -> None:
        """No write of a holder, however late, turns a done message into anything else."""
        row = granted(ledger, holder="me")
        ledger.complete(MESSAGE, row, "1")
        done = read(ledger)

        for late in (
            lambda: ledger.complete(MESSAGE, row, "2"),
            lambda: ledger.decide_waiting(MESSAGE, row, due_ms=1, failure=FAILURE),
            lambda: ledger.decide_dead(MESSAGE, row, failure=FAILURE),
        ):
            with pytest.raises(LeaseLost):
                late()
        assert not ledger.end_crashed("me")
        assert not ledger.release("me")
        assert not ledger.cancel(MESSAGE, REDRIVEN)
        ledger.renew(["me"], LEASE)
        assert read(ledger) == done

    def test_a_completion_may_be_repeated(self, ledger: Ledger) -> None:
        """Who completes again because the answer was lost is told that it is done."""
        row = granted(ledger)
        ledger.complete(MESSAGE, row, "1")

        ledger.complete(MESSAGE, row, "1")

        assert read(ledger).result == "1"

    def test_completion_asks_the_token_not_the_time(self, ledger: Ledger, pass_time: PassTime) -> None:
        """A holder whose lease expired may still complete as long as nobody took over."""
        row = granted(ledger)
        pass_time(20)

        ledger.complete(MESSAGE, row, None)

        assert read(ledger).state is State.DONE

    # --- cancel

    def test_a_cancelled_message_is_superseded(self, ledger: Ledger) -> None:
        """Cancelled is terminal for all copies, whether the message had a row or not."""
        row = granted(ledger)

        assert ledger.cancel(MESSAGE, FIRST)
        assert ledger.cancel(OTHER, FIRST)

        assert isinstance(acquire(ledger), Superseded)
        assert isinstance(acquire(ledger, OTHER, REDRIVEN), Superseded)
        with pytest.raises(LeaseLost):
            ledger.complete(MESSAGE, row, None)

    # --- decisions

    def test_a_retry_is_recorded(self, ledger: Ledger) -> None:
        """Deciding a retry ends the lease; all of the decision comes back as it was written."""
        decided = ledger.decide_waiting(MESSAGE, granted(ledger), due_ms=42, failure=FAILURE)

        assert read(ledger) == decided
        assert (decided.state, decided.generation, decided.due_ms) == (State.WAITING, Generation(0, 2), 42)
        assert (decided.failure, decided.sent, decided.holder) == (FAILURE, False, None)

    def test_a_letter_is_recorded(self, ledger: Ledger) -> None:
        """Deciding a letter ends the lease for good."""
        decided = ledger.decide_dead(MESSAGE, granted(ledger), failure=FAILURE)

        assert read(ledger) == decided
        assert (decided.state, decided.generation, decided.failure) == (State.DEAD, FIRST, FAILURE)

    @pytest.mark.parametrize("expire", [True, False], ids=["taken over", "released and taken"])
    def test_a_fenced_holder_writes_nothing(
        self, ledger: Ledger, pass_time: PassTime, *, expire: bool
    ) -> None:
        """After a takeover every write of the earlier holder fails and changes nothing."""
        stale = granted(ledger, holder="me")
        if expire:
            pass_time(15.5)
        else:
            ledger.release("me")
        current = granted(ledger)

        for late in (
            lambda: ledger.complete(MESSAGE, stale, None),
            lambda: ledger.decide_waiting(MESSAGE, stale, due_ms=1, failure=FAILURE),
            lambda: ledger.decide_dead(MESSAGE, stale, failure=FAILURE),
        ):
            with pytest.raises(LeaseLost, match="m"):
                late()
        assert not ledger.end_crashed("me")
        assert not ledger.release("me")
        assert read(ledger) == current

    def test_a_decision_ends_the_lease(self, ledger: Ledger) -> None:
        """One attempt has one end: the second decision of a holder is refused."""
        row = granted(ledger)
        ledger.decide_waiting(MESSAGE, row, due_ms=1, failure=FAILURE)

        with pytest.raises(LeaseLost):
            ledger.decide_dead(MESSAGE, row, failure=FAILURE)
        with pytest.raises(LeaseLost):
            ledger.complete(MESSAGE, row, None)

    def test_a_decision_may_be_repeated(self, ledger: Ledger) -> None:
        """Who decides again because the answer was lost gets the decision that stands."""
        row = granted(ledger)
        decided = ledger.decide_waiting(MESSAGE, row, due_ms=1, failure=FAILURE)

        assert ledger.decide_waiting(MESSAGE, row, due_ms=1, failure=FAILURE) == decided

    def test_an_unsent_decision_is_resent_until_marked(self, ledger: Ledger) -> None:
        """A redelivery repeats the publish of a decision until somebody marked it sent."""
        decided = ledger.decide_waiting(MESSAGE, granted(ledger), due_ms=1, failure=FAILURE)
        assert acquire(ledger) == Resend(decided)

        assert ledger.mark_sent(MESSAGE, str(decided.decision))
        assert isinstance(acquire(ledger), Superseded)

    def test_a_late_mark_does_not_pass_for_a_later_decision(self, ledger: Ledger) -> None:
        """A mark names the decision it is for: the same attempt's letter stays unsent."""
        retry = ledger.decide_waiting(MESSAGE, granted(ledger), due_ms=1, failure=FAILURE)
        letter = ledger.decide_dead(MESSAGE, granted(ledger, generation=retry.generation), failure=FAILURE)

        assert letter.generation == retry.generation
        assert not ledger.mark_sent(MESSAGE, str(retry.decision))
        assert not read(ledger).sent
        assert ledger.mark_sent(MESSAGE, str(letter.decision))
        assert read(ledger).sent

    def test_a_mark_during_the_next_attempt_is_lost(self, ledger: Ledger) -> None:
        """Once the next attempt runs there is no decision left to mark."""
        retry = ledger.decide_waiting(MESSAGE, granted(ledger), due_ms=1, failure=FAILURE)
        row = granted(ledger, generation=retry.generation)

        assert not ledger.mark_sent(MESSAGE, str(retry.decision))
        assert read(ledger) == row

    def test_a_mark_is_for_one_message(self, ledger: Ledger) -> None:
        """A decision's id says nothing about another message."""
        decided = ledger.decide_dead(MESSAGE, granted(ledger), failure=FAILURE)

        assert not ledger.mark_sent(OTHER, str(decided.decision))
        assert not read(ledger).sent

    # --- renewal, crash, release

    def test_renewal_extends_live_holders_only(self, ledger: Ledger, pass_time: PassTime) -> None:
        """Of all holders named, those that hold a lease get a whole new one; the others nothing."""
        ended = MessageId("shop.charge", "o")
        granted(ledger, holder="me")
        granted(ledger, OTHER, holder="unnamed")
        ledger.decide_dead(ended, granted(ledger, ended, holder="ended"), failure=FAILURE)
        before = read(ledger, ended)
        pass_time(2)
        aged, unnamed = read(ledger), read(ledger, OTHER)

        ledger.renew(["me", "ended", "nobody"], LEASE)
        ledger.renew([], LEASE)

        assert read(ledger).expires >= aged.expires + 2
        assert timeless(read(ledger)) == timeless(aged)
        assert read(ledger, OTHER) == unnamed
        assert read(ledger, ended) == before

    def test_a_renewed_lease_holds(self, ledger: Ledger, pass_time: PassTime) -> None:
        """A lease that is renewed in time outlives its first length."""
        granted(ledger, holder="me")
        for _ in range(3):
            pass_time(8)
            ledger.renew(["me"], LEASE)

        assert isinstance(acquire(ledger), Held)

    def test_a_crash_ends_the_lease_at_once(self, ledger: Ledger) -> None:
        """A crash is counted once, and the next delivery runs without a wait and without a takeover."""
        granted(ledger, holder="me")

        assert ledger.end_crashed("me")
        assert not ledger.end_crashed("me")
        row = granted(ledger)
        assert (row.crashes, row.lost) == (1, 0)

    def test_a_release_is_not_counted(self, ledger: Ledger) -> None:
        """A holder that was stopped on purpose charges nobody."""
        granted(ledger, holder="me")

        assert ledger.release("me")
        assert not ledger.release("me")
        row = granted(ledger)
        assert (row.crashes, row.lost) == (0, 0)

    def test_a_crash_after_the_decision_is_none(self, ledger: Ledger) -> None:
        """A process that dies between decision and publish leaves the decision as it is."""
        decided = ledger.decide_waiting(MESSAGE, granted(ledger, holder="me"), due_ms=1, failure=FAILURE)

        assert not ledger.end_crashed("me")
        assert read(ledger) == decided

    def test_a_holder_that_ends_keeps_what_was_counted_meanwhile(self, ledger: Ledger) -> None:
        """A crash that was counted although the holder lives on is not in the row it knows, and stays."""
        row = granted(ledger, holder="me")
        assert ledger.end_crashed("me")

        ledger.complete(MESSAGE, row, None)
        assert (read(ledger).state, read(ledger).crashes) == (State.DONE, 1)

    # --- two rows of one holder

    def test_all_leases_of_a_holder_end_together(self, ledger: Ledger, pass_time: PassTime) -> None:
        """A holder may hold a message and its key: both are renewed, and end with one call."""
        granted(ledger, holder="me")
        granted(ledger, OTHER, holder="me")
        pass_time(8)
        ledger.renew(["me"], LEASE)
        pass_time(8)
        assert isinstance(acquire(ledger), Held)
        assert isinstance(acquire(ledger, OTHER), Held)

        assert ledger.release("me")
        assert granted(ledger).lost == granted(ledger, OTHER).lost == 0

    def test_message_and_key_are_done_together(self, ledger: Ledger) -> None:
        """The claimed key records result and fingerprint, and is found by whoever brings it next."""
        key = key_id("shop.charge", {"order": 5})
        row, record = granted(ledger, holder="me"), granted(ledger, key, holder="me")
        claim = Claim(key, record, "f00d", MESSAGE)

        ledger.complete(MESSAGE, row, "5", None, claim)
        ledger.complete(MESSAGE, row, "5", None, claim)

        admission = acquire(ledger, key)
        assert isinstance(admission, AlreadyDone)
        assert recorded(admission.row.result or "") == ("f00d", str(MESSAGE), "5")
        assert read(ledger).state is State.DONE

    def test_a_key_that_was_taken_over_fences_its_message(self, ledger: Ledger) -> None:
        """Who lost the key cannot complete the message either, though nobody took that."""
        row, record = granted(ledger, holder="me"), granted(ledger, OTHER, holder="mine")
        ledger.release("mine")
        current = granted(ledger, OTHER)

        with pytest.raises(LeaseLost):
            ledger.complete(MESSAGE, row, "5", None, Claim(OTHER, record, "f00d", MESSAGE))
        assert read(ledger) == row
        assert read(ledger, OTHER) == current

    # --- handing over

    def test_a_lease_is_handed_over(self, ledger: Ledger, pass_time: PassTime) -> None:
        """The new holder has it for the new time, with a note; the old one can write nothing any more."""
        row = granted(ledger, holder="me")

        ledger.hand_over(MESSAGE, row, to="you", lease=timedelta(seconds=60), note='"n"')
        pass_time(50)

        assert isinstance(acquire(ledger), Held)
        assert (read(ledger).holder, read(ledger).result, read(ledger).state) == ("you", '"n"', State.LEASED)
        with pytest.raises(LeaseLost):
            ledger.complete(MESSAGE, row, None)
        assert not ledger.release("me")
        pass_time(11)
        assert granted(ledger).result is None

    def test_what_was_handed_over_is_released_by_its_new_holder(self, ledger: Ledger) -> None:
        """The lease follows the holder that has it."""
        ledger.hand_over(MESSAGE, granted(ledger, holder="me"), to="you", lease=LEASE, note=None)

        assert ledger.release("you")
        assert isinstance(acquire(ledger), Run)

    def test_handed_over_once_more_it_is_as_it_was_recorded(self, ledger: Ledger) -> None:
        """Who did not hear the answer asks again, and is told what stands in the ledger."""
        row = granted(ledger, holder="me")
        ledger.hand_over(MESSAGE, row, to="you", lease=LEASE, note='"first"')

        again = ledger.hand_over(MESSAGE, row, to="you", lease=LEASE, note='"second"')

        assert again.result == read(ledger).result == '"first"'

    def test_a_lease_that_was_lost_is_not_handed_over(self, ledger: Ledger) -> None:
        """Whoever was taken over has nothing to give."""
        row = granted(ledger, holder="me")
        ledger.release("me")
        current = granted(ledger)

        with pytest.raises(LeaseLost):
            ledger.hand_over(MESSAGE, row, to="you", lease=LEASE, note=None)
        assert read(ledger) == current

    # --- tools

    def test_many_rows_are_read_at_once(self, ledger: Ledger) -> None:
        """Of the messages asked for, those that have a row are returned with it, and no others."""
        acquire(ledger)
        acquire(ledger, OTHER)
        ledger.cancel(OTHER, FIRST)
        found = ledger.read_many([MESSAGE, OTHER, MessageId("shop.charge", "nobody")])
        assert {message: row.state for message, row in found.items()} == {
            MESSAGE: State.LEASED,
            OTHER: State.CANCELLED,
        }
        assert ledger.read_many([]) == {}

    def test_rows_are_found_by_a_part_of_their_name(self, ledger: Ledger) -> None:
        """An operator looks for an id or a task; what has a meaning in patterns is taken by the letter."""
        for message in (MESSAGE, OTHER, MessageId("shop.refund", "100%_m*")):
            granted(ledger, message)

        assert [name for name, _ in ledger.find("shop.charge[")] == [str(MESSAGE), str(OTHER)]
        assert [name for name, _ in ledger.find("%_m*")] == ["shop.refund[100%_m*]"]
        assert len(ledger.find("shop", most=2)) == 2
        assert dict(ledger.find("shop.charge[m]")) == {str(MESSAGE): read(ledger)}

    def test_only_what_ended_long_ago_is_purged(self, ledger: Ledger) -> None:
        """Done, dead and cancelled rows go; leased and waiting ones stay however old."""
        rows = {
            name: MessageId("shop.charge", name)
            for name in ("done", "dead", "cancelled", "waiting", "leased")
        }
        ledger.complete(rows["done"], granted(ledger, rows["done"]), None)
        ledger.decide_dead(rows["dead"], granted(ledger, rows["dead"]), failure=FAILURE)
        ledger.cancel(rows["cancelled"], FIRST)
        ledger.decide_waiting(rows["waiting"], granted(ledger, rows["waiting"]), due_ms=1, failure=FAILURE)
        granted(ledger, rows["leased"])
        time.sleep(0.05)

        assert ledger.count_purgeable(timedelta(hours=1)) == ledger.purge(timedelta(hours=1)) == 0
        assert ledger.count_purgeable(timedelta(milliseconds=10)) == 3
        assert ledger.purge(timedelta(milliseconds=10)) == 3
        assert [name for name, row in rows.items() if ledger.read(row)] == ["waiting", "leased"]

    def test_records_of_unique_tasks_are_purged_when_their_lease_has_expired(
        self, ledger: Ledger, pass_time: PassTime
    ) -> None:
        """They do not end, so they go when nobody relies on them any more."""
        record = unique_id("shop.charge", 5)
        granted(ledger, record)
        time.sleep(0.05)
        assert ledger.purge(timedelta(milliseconds=10)) == 0
        pass_time(15.5)
        assert ledger.purge(timedelta(hours=1)) == 0

        assert ledger.count_purgeable(timedelta(milliseconds=10)) == 1
        assert ledger.purge(timedelta(milliseconds=10)) == 1
        assert ledger.read(record) is None

    def test_who_held_what_was_purged_ends_nobody_elses_lease(
        self, ledger: Ledger, pass_time: PassTime
    ) -> None:
        """A unique task's record that is made anew is its new holder's alone."""
        record = unique_id("shop.charge", 5)
        granted(ledger, record, holder="old")
        pass_time(15.5)
        time.sleep(0.05)
        assert ledger.purge(timedelta(milliseconds=10)) == 1
        granted(ledger, record, holder="new")

        ledger.renew(["old"], 1000 * LEASE)
        assert not ledger.release("old")
        assert read(ledger, record).holder == "new"
        pass_time(15.5)
        assert isinstance(acquire(ledger, record), Run)

    # --- unit of work

    def test_a_unit_of_work_completes(self, ledger: Ledger) -> None:
        """Leaving the block marks the message done; a store that cannot do it refuses and says why."""
        row = granted(ledger)
        if "unit_of_work" not in self.can:
            with pytest.raises(ConfigurationError, match="unit_of_work"):
                ledger.unit_of_work(MESSAGE, row, str)
            return
        with ledger.unit_of_work(MESSAGE, row, str) as work:
            work.result = 5

        assert (read(ledger).state, read(ledger).result) == (State.DONE, "5")

    def test_a_unit_of_work_completes_the_key(self, ledger: Ledger) -> None:
        """Message and key commit together, or, if the key was lost, not at all."""
        if "unit_of_work" not in self.can:
            return
        row, record = granted(ledger, holder="me"), granted(ledger, OTHER, holder="mine")
        ledger.release("mine")
        granted(ledger, OTHER, holder="another")
        with (
            pytest.raises(LeaseLost),
            ledger.unit_of_work(MESSAGE, row, str, Claim(OTHER, record, "f", MESSAGE)),
        ):
            pass
        assert read(ledger) == row

        ledger.release("another")
        claim = Claim(OTHER, granted(ledger, OTHER), "f", MESSAGE)
        with ledger.unit_of_work(MESSAGE, row, str, claim) as work:
            work.result = 5
        assert recorded(read(ledger, OTHER).result or "").result == read(ledger).result == "5"

    def test_a_unit_of_work_that_fails_does_not(self, ledger: Ledger) -> None:
        """An exception leaves the lease as it was."""
        if "unit_of_work" not in self.can:
            return
        row = granted(ledger)

        def fail() -> None:
            with ledger.unit_of_work(MESSAGE, row, str):
                raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            fail()
        assert read(ledger) == row

    def test_a_stale_unit_of_work_is_refused(self, ledger: Ledger, pass_time: PassTime) -> None:
        """A holder that was taken over cannot commit."""
        if "unit_of_work" not in self.can:
            return
        stale = granted(ledger)
        pass_time(15.5)
        current = granted(ledger)

        with pytest.raises(LeaseLost), ledger.unit_of_work(MESSAGE, stale, str):
            pass
        assert read(ledger) == current
