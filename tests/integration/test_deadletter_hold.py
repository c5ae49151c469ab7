"""Reading letters leaves them as they were: on live brokers, where every version gives back differently."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from kombu import Connection

from tests.support.apps import declare, shop
from tests.support.letters import LETTERS, numbered, put
from tests.support.publishing import drained, ids
from tests.support.raw_amqp import get, open_channel
from unlost.broker.management import Management
from unlost.deadletter.desk import DeadLetters
from unlost.deadletter.guard import refuse_counting_looks
from unlost.deadletter.hold import Hold
from unlost.errors import DeadLetterError, QueueMissing
from unlost.testing.brokers import Vhost
from unlost.topology.objects import Policy, Queue

COUNT = 30
LOOKS = 22


@pytest.fixture
def filled(vhost: Vhost) -> Vhost:
    """A vhost with the shop's topology and letters m0 to m29."""
    declare(vhost, shop())
    put(vhost.amqp_url, numbered(COUNT))
    return vhost


def orders(hold: Hold, most: int | None = None) -> list[str]:
    """Return the ids of letters as a hold gives them."""
    return [held.letter.id for held in hold.letters(most)]


def test_looking_often_changes_nothing(filled: Vhost) -> None:
    """Twenty-two looks in windows of seven see every letter in order, and leave it so for consumers."""
    expected = [f"m{number}" for number in range(COUNT)]
    for _ in range(LOOKS):
        with Hold(Connection(filled.amqp_url), LETTERS, window=7) as hold:
            assert orders(hold) == expected
    assert ids(drained(filled, LETTERS)) == [f"m{number}.0.1" for number in range(COUNT)]


def test_a_look_that_ends_early_gives_all_back(filled: Vhost) -> None:
    """A look that is broken off leaves every letter in the queue."""
    with Hold(Connection(filled.amqp_url), LETTERS, window=7) as hold:
        assert orders(hold, most=3) == ["m0", "m1", "m2"]
    assert sorted(ids(drained(filled, LETTERS))) == sorted(f"m{number}.0.1" for number in range(COUNT))


def test_letters_that_come_in_during_a_look_are_not_lost(filled: Vhost) -> None:
    """A letter published while others are held is seen or not, and is in the queue afterwards."""
    with Hold(Connection(filled.amqp_url), LETTERS, window=7) as hold:
        letters = hold.letters()
        next(letters)
        put(filled.amqp_url, list(numbered(COUNT + 1))[-1:])
        rest = [held.letter.id for held in letters]
    assert f"m{COUNT}" in rest
    assert len(drained(filled, LETTERS)) == COUNT + 1


def test_acked_letters_are_gone_and_kept_ones_stay(filled: Vhost) -> None:
    """Only what was acked leaves the queue, also when kept letters lie before and between."""
    with Hold(Connection(filled.amqp_url), LETTERS, window=7) as hold:
        for held in hold.letters():
            if int(held.letter.id[1:]) % 3 == 0:
                hold.keep(held)
            else:
                hold.ack([held])
    kept = [f"m{number}.0.1" for number in range(0, COUNT, 3)]
    assert ids(drained(filled, LETTERS)) == kept


def test_an_empty_queue_has_no_letters(vhost: Vhost) -> None:
    """A look at an empty queue ends at once."""
    declare(vhost, shop())
    with Hold(Connection(vhost.amqp_url), LETTERS) as hold:
        assert orders(hold) == []


def test_a_missing_queue_is_named(vhost: Vhost) -> None:
    """The error names the queue that is not there."""
    with pytest.raises(QueueMissing, match=r"'no\.such\.dlq'"):
        Hold(Connection(vhost.amqp_url), "no.such.dlq")


def test_a_queue_that_vanishes_is_named(filled: Vhost) -> None:
    """Deleting the queue during a look ends it with an error that says so."""
    with Hold(Connection(filled.amqp_url), LETTERS) as hold:
        letters = hold.letters()
        for _ in range(COUNT):
            next(letters)
        with open_channel(filled.amqp_url) as channel:
            channel.queue_delete(LETTERS)
        with pytest.raises(QueueMissing, match=r"deleted|no queue"):
            next(letters)


def test_other_consumers_get_theirs_after_a_look(filled: Vhost) -> None:
    """While letters are held another consumer gets none of them; afterwards it gets the first."""
    with Hold(Connection(filled.amqp_url), LETTERS) as hold:
        orders(hold)
        with open_channel(filled.amqp_url) as channel:
            assert channel.basic_get(LETTERS) is None
    with open_channel(filled.amqp_url) as channel:
        assert get(channel, LETTERS).properties["message_id"] == "m0.0.1"


def test_a_look_that_takes_too_long_says_so(filled: Vhost) -> None:
    """A hold that has lasted too long ends the iteration and says that it did."""
    with Hold(Connection(filled.amqp_url), LETTERS, longest=timedelta(0)) as hold:
        assert orders(hold) == []
        assert hold.is_cut


def test_a_queue_in_which_looks_count_is_refused(vhost: Vhost) -> None:
    """A delivery limit is refused where the broker counts looks, and only there."""
    with Management(vhost.management_url, vhost.name) as management:
        management.put_queue(
            Queue(name="limited", arguments={"x-queue-type": "quorum", "x-delivery-limit": 3})
        )
        management.put_queue(Queue(name="free", arguments={"x-queue-type": "quorum"}))
        management.put(
            Policy(
                name="free",
                pattern="^free$",
                apply_to="queues",
                definition={"delivery-limit": -1}
                if management.version() >= (4, 0)
                else {"max-length": 10**6},
                priority=1,
            )
        )
        refuse_counting_looks(management, "free")
        if management.version() >= (4, 3):
            refuse_counting_looks(management, "limited")
        else:
            with pytest.raises(DeadLetterError, match="delivery limit of 3"):
                refuse_counting_looks(management, "limited")


def test_looks_do_not_count_on_new_brokers(vhost: Vhost) -> None:
    """Where the broker allows it, ten looks under a delivery limit of three delete nothing."""
    with Management(vhost.management_url, vhost.name) as management:
        if management.version() < (4, 3):
            return
        management.put_queue(
            Queue(name="limited", arguments={"x-queue-type": "quorum", "x-delivery-limit": 3})
        )
    put(vhost.amqp_url, [each.to("", "limited") for each in numbered(5)])
    desk = DeadLetters(vhost.amqp_url, folder=Path())
    for _ in range(10):
        assert len(list(desk.letters("limited"))) == 5
