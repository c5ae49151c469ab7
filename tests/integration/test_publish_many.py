"""Many messages in flight on live brokers: what became of each, whatever happens to the others."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import amqp
import pytest

from tests.support.publishing import (
    BRIEFLY,
    PATIENCE,
    QUEUE,
    declare_queue,
    drained,
    ids,
    message,
    publisher,
)
from tests.support.raw_amqp import open_channel
from unlost import errors
from unlost.broker.management import Management
from unlost.broker.window import Published
from unlost.core.message import Outgoing
from unlost.core.outcome import Outcome
from unlost.testing.brokers import Broker, Vhost
from unlost.testing.brokers.alarms import memory_alarm
from unlost.testing.proxy import MuteProxy
from unlost.testing.waiting import wait_until
from unlost.topology.objects import Policy

OK, FAILED, UNKNOWN = Outcome.OK, Outcome.FAILED, Outcome.UNKNOWN


@pytest.fixture
def queue(vhost: Vhost) -> str:
    """Declare the queue that messages of these tests go to."""
    declare_queue(vhost)
    return QUEUE


def outcomes(published: list[Published]) -> list[Outcome]:
    """Return the outcomes alone."""
    return [each.outcome for each in published]


def _collect(source: Iterator[Published], into: list[Published]) -> None:
    for each in source:
        into.append(each)


@pytest.mark.parametrize("window", [1, 7, 1000])
def test_each_message_is_there_once_in_order(vhost: Vhost, queue: str, window: int) -> None:
    """Without trouble every message is ok, in the queue once, and handed out in the order of the input."""
    sent = [message(body=f"{n} " + "x" * (n * 37 % 5000)) for n in range(500)]
    with publisher(vhost.amqp_url) as publishing:
        published = list(publishing.publish_many(sent, window=window))
    assert [each.outgoing for each in published] == sent
    assert outcomes(published) == [OK] * 500
    assert all(each.error is None for each in published)
    found = drained(vhost)
    assert ids(found) == [each.message_id for each in sent]
    assert [each.body for each in found] == [each.body for each in sent]


def test_the_input_is_consumed_lazily(vhost: Vhost, queue: str) -> None:
    """Never more than a window is taken ahead of what was handed out."""
    taken = 0

    def source() -> Iterator[Outgoing]:
        nonlocal taken
        for _ in range(500):
            taken += 1
            yield message()

    with publisher(vhost.amqp_url) as publishing:
        for handed_out, _ in enumerate(publishing.publish_many(source(), window=20)):
            assert taken - handed_out <= 20
    assert taken == 500


def test_an_input_that_raises_harms_nothing_before_it(vhost: Vhost, queue: str) -> None:
    """What the input gave before it raised is handed out with its outcome; then its error comes through."""

    def source() -> Iterator[Outgoing]:
        yield from (message() for _ in range(5))
        raise KeyError("the sixth")

    published: list[Published] = []
    with publisher(vhost.amqp_url) as publishing, pytest.raises(KeyError, match="the sixth"):
        _collect(publishing.publish_many(source()), published)
    assert outcomes(published) == [OK] * 5
    assert len(drained(vhost)) == 5


@pytest.mark.parametrize("missing", ["queue", "exchange", "both"])
def test_the_unroutable_ones_fail_and_no_other(vhost: Vhost, queue: str, missing: str) -> None:
    """Among many, exactly those without a queue or an exchange are Unroutable; the others are there."""
    sent: list[Outgoing] = []
    for n in range(120):
        if n % 10 == 3 and missing in ("queue", "both"):
            sent.append(message("no-such-queue"))
        elif n % 25 == 4 and missing in ("exchange", "both"):
            sent.append(message(exchange="no-such-exchange"))
        else:
            sent.append(message())
    with publisher(vhost.amqp_url) as publishing:
        published = list(publishing.publish_many(sent, window=50))
    assert [each.outgoing for each in published] == sent
    for each in published:
        good = each.outgoing.exchange == "" and each.outgoing.routing_key == QUEUE
        assert each.outcome is (OK if good else FAILED)
        assert isinstance(each.error, type(None) if good else errors.Unroutable)
        if not good:
            assert each.outgoing.message_id in str(each.error)
    assert sorted(ids(drained(vhost))) == sorted(
        each.outgoing.message_id for each in published if each.outcome is OK
    )


def test_returns_are_matched_by_more_than_the_id(vhost: Vhost, queue: str) -> None:
    """Of two messages with one id the one without a queue fails, and the other is ok."""
    twin = message()
    with publisher(vhost.amqp_url) as publishing:
        list(publishing.publish_many([message()]))
        published = list(publishing.publish_many([twin, twin.to("", "no-such-queue"), twin]))
    assert outcomes(published) == [OK, FAILED, OK]
    assert ids(drained(vhost))[1:] == [twin.message_id] * 2


def test_equal_messages_that_all_come_back_all_fail(vhost: Vhost, queue: str) -> None:
    """Messages without an id of their own are told apart by counting: all returned, all Unroutable."""
    twin = message("no-such-queue", message_id=None)
    with publisher(vhost.amqp_url) as publishing:
        published = list(publishing.publish_many([message(), twin, twin, message(), twin]))
    assert outcomes(published) == [OK, FAILED, FAILED, OK, FAILED]


IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "headers over frame_max": {"headers": {"big": "x" * 200_000}},
    "header type": {"headers": {"object": object()}},
    "user id": {"user_id": "somebody-else"},
    "long id": {"message_id": "x" * 300},
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_carried_fails_alone(vhost: Vhost, queue: str, case: str) -> None:
    """A message that AMQP or the broker cannot take is found among the others, and only it fails."""
    sent = [message(**(IMPOSSIBLE[case] if n in (0, 37) else {})) for n in range(80)]
    with publisher(vhost.amqp_url) as publishing:
        published = list(publishing.publish_many(sent))
    assert [n for n, each in enumerate(published) if each.outcome is not OK] == [0, 37]
    for n in (0, 37):
        assert published[n].outcome is FAILED
        assert isinstance(published[n].error, errors.Refused)
    assert set(ids(drained(vhost))) == {each.outgoing.message_id for each in published if each.outcome is OK}


def test_a_full_queue_fails_its_own_messages_only(vhost: Vhost, queue: str) -> None:
    """A queue that refuses is waited for within the patience; messages to another queue are all ok."""
    declare_queue(vhost, "small", max_length=1, overflow="reject-publish")
    # The limit is soft: the queue takes what is under way when it is reached.
    sent = [message("small" if n % 2 else QUEUE) for n in range(600)]
    with publisher(vhost.amqp_url) as publishing:
        published = list(publishing.publish_many(sent, window=20, patience=BRIEFLY))
    to_small = [each for each in published if each.outgoing.routing_key == "small"]
    assert outcomes([each for each in published if each.outgoing.routing_key == QUEUE]) == [OK] * 300
    refused = [each for each in to_small if each.outcome is FAILED]
    assert len(refused) >= 200
    assert all(isinstance(each.error, errors.Refused) for each in refused)
    assert Counter(ids(drained(vhost))) == Counter(
        each.outgoing.message_id for each in published if each.outgoing.routing_key == QUEUE
    )
    with open_channel(vhost.amqp_url) as channel:
        there = []
        while (found := channel.basic_get("small", no_ack=True)) is not None:
            there.append(found)
    assert ids(there) == [each.outgoing.message_id for each in to_small if each.outcome is OK]


def test_a_full_queue_is_backpressure_while_somebody_consumes(vhost: Vhost) -> None:
    """As long as messages get through, however slowly, none fails: the queue's pace is the publisher's."""
    declare_queue(vhost, max_length=5, overflow="reject-publish")
    sent = [message() for _ in range(40)]
    taken: list[amqp.Message] = []
    with publisher(vhost.amqp_url) as publishing, ThreadPoolExecutor(1) as thread:
        sending = thread.submit(lambda: list(publishing.publish_many(sent, patience=PATIENCE)))
        with open_channel(vhost.amqp_url) as channel:

            def take_one() -> bool:
                found = channel.basic_get(QUEUE, no_ack=True)
                taken.extend([found] if found else [])
                return len(taken) == 40

            wait_until(take_one, 2 * PATIENCE, "all were taken", poll=timedelta(milliseconds=20))
        assert outcomes(sending.result(30)) == [OK] * 40
    assert sorted(ids(taken)) == sorted(each.message_id for each in sent)


def test_a_limit_that_is_lifted_is_noticed(vhost: Vhost, queue: str) -> None:
    """A queue that was full takes messages again when its limit is taken away.

    RabbitMQ 3.10 goes on refusing for ever on a channel that it has refused on before.
    """
    full = Policy(
        name="full",
        pattern=QUEUE,
        apply_to="queues",
        definition={"max-length": 1, "overflow": "reject-publish"},
    )
    with (
        Management(vhost.management_url, vhost.name) as management,
        publisher(vhost.amqp_url, patience=PATIENCE) as publishing,
    ):
        management.put(full)
        refused = wait_until(
            lambda: [each for each in publishing.publish_many([message()], patience=BRIEFLY) if each.error],
            PATIENCE,
            "the queue refuses",
        )
        assert outcomes(refused) == [FAILED]
        sent, published = [message() for _ in range(20)], publishing.window(10)
        for each in sent[:5]:
            published.put(each)
        management.delete(full)
        for each in sent[5:]:
            published.put(each)
        published.settle()
        assert outcomes(list(published.settled())) == [OK] * 20
        published.close()


@pytest.mark.one_broker
def test_nothing_is_written_during_a_memory_alarm(broker: Broker, vhost: Vhost, queue: str) -> None:
    """While the broker is short of memory all fail as Refused, and none of them is there afterwards."""
    with publisher(vhost.amqp_url, confirm_timeout=BRIEFLY) as publishing:
        before = list(publishing.publish_many([message(body="before")]))
        with memory_alarm(broker):
            during = list(publishing.publish_many((message() for _ in range(30)), patience=2 * BRIEFLY))
        after = list(publishing.publish_many([message(body="after")]))
    assert outcomes(before + after) == [OK, OK]
    assert outcomes(during) == [FAILED] * 30
    assert {type(each.error).__name__ for each in during} == {"Refused"}
    assert "blocks publishers" in str(during[17].error)
    assert during[17].outgoing.message_id in str(during[17].error)
    assert [found.body for found in drained(vhost)] == ["before", "after"]


def test_a_lost_connection_is_made_up_for_under_the_same_ids(vhost: Vhost, queue: str) -> None:
    """When confirms stop coming, what is in doubt is sent again on another connection and ends ok."""
    with MuteProxy(vhost.amqp_url) as proxy, publisher(proxy.url, confirm_timeout=BRIEFLY) as publishing:
        sent = [message() for _ in range(200)]

        def source() -> Iterator[Outgoing]:
            for n, each in enumerate(sent):
                if n == 50:
                    proxy.mute()
                yield each

        published = list(publishing.publish_many(source(), window=20))
    assert outcomes(published) == [OK] * 200
    there = Counter(ids(drained(vhost)))
    assert set(there) == {each.message_id for each in sent}
    assert 0 < sum(there.values()) - 200 <= 20


def test_what_stays_in_doubt_is_unknown_and_what_was_not_sent_failed(vhost: Vhost, queue: str) -> None:
    """With the way to the broker gone, messages that were sent are unknown, the others have failed."""
    proxy = MuteProxy(vhost.amqp_url)

    def source(channel: amqp.Channel) -> Iterator[Outgoing]:
        for n in range(30):
            if n == 20:
                there = lambda: channel.queue_declare(QUEUE, passive=True)[1] > 1  # noqa: E731
                wait_until(there, PATIENCE, "something of it is stored")
                proxy.__exit__()
            yield message()

    with publisher(proxy.url, confirm_timeout=BRIEFLY, patience=BRIEFLY) as publishing:
        list(publishing.publish_many([message()]))
        proxy.mute()
        with open_channel(vhost.amqp_url) as channel:
            published = list(publishing.publish_many(source(channel)))
        later = list(publishing.publish_many(message() for _ in range(10)))
    assert UNKNOWN in outcomes(published)
    assert OK not in outcomes(published)
    assert outcomes(later) == [FAILED] * 10
    published += later
    for each in published:
        kind = errors.ConfirmUnknown if each.outcome is UNKNOWN else errors.BrokerUnavailable
        assert isinstance(each.error, kind)
        assert each.outgoing.message_id in str(each.error)
    there = set(ids(drained(vhost)))
    assert not there & {each.outgoing.message_id for each in published if each.outcome is FAILED}


def test_refused_credentials_fail_each_message_at_once(vhost: Vhost) -> None:
    """With a wrong vhost every message fails as AccessRefused, without a login for each."""
    with publisher(f"{vhost.amqp_url}-not") as publishing:
        published = list(publishing.publish_many(message() for _ in range(2000)))
    assert outcomes(published) == [FAILED] * 2000
    assert all(isinstance(each.error, errors.AccessRefused) for each in published)


def test_an_iterator_is_not_carried_over_a_fork(vhost: Vhost, queue: str) -> None:
    """A child that goes on with its parent's iterator gets an error; the parent's messages are all ok."""
    script = textwrap.dedent(
        """
        import os, sys
        from tests.support.publishing import message, publisher
        with publisher(sys.argv[1]) as publishing:
            published = publishing.publish_many((message() for _ in range(300)), window=10)
            next(published)
            child = os.fork()
            if child == 0:
                try:
                    list(published)
                except RuntimeError as exc:
                    ours = list(publishing.publish_many(message(body="child") for _ in range(50)))
                    os._exit(0 if "fork" in str(exc) and all(p.outcome == "ok" for p in ours) else 1)
                os._exit(2)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert all(each.outcome == "ok" for each in published)
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script, vhost.amqp_url], check=True, timeout=60, env=environment)
    bodies = Counter(found.body for found in drained(vhost))
    assert bodies == {"x": 300, "child": 50}


def test_threads_have_windows_of_their_own(vhost: Vhost, queue: str) -> None:
    """Four threads that publish many at once, with single publishes among them, lose and mix up nothing."""
    sent = [[message(body=f"{thread} {n}") for n in range(200)] for thread in range(4)]
    with publisher(vhost.amqp_url) as publishing, ThreadPoolExecutor(5) as threads:

        def run(part: list[Outgoing]) -> list[Published]:
            return list(publishing.publish_many(part, window=30))

        running = [threads.submit(run, part) for part in sent]
        singles = [message() for _ in range(50)]
        for each in singles:
            publishing.publish(each)
        for part, thread in zip(sent, running, strict=True):
            published = thread.result(60)
            assert [each.outgoing for each in published] == part
            assert set(outcomes(published)) == {OK}
    expected = [each.message_id for part in [*sent, singles] for each in part]
    assert sorted(ids(drained(vhost))) == sorted(expected)


def test_an_iterator_that_is_closed_early_leaves_a_usable_publisher(vhost: Vhost, queue: str) -> None:
    """Closing the iterator gives its connection up; the next publish is not confused by late confirms."""
    with publisher(vhost.amqp_url) as publishing:
        started: Any = publishing.publish_many(message() for _ in range(100))
        next(started)
        started.close()
        lost = message("no-such-queue")
        with pytest.raises(errors.Unroutable):
            publishing.publish(lost)
        assert outcomes(list(publishing.publish_many([message()]))) == [OK]


def test_a_window_of_nothing_is_refused(vhost: Vhost) -> None:
    """A window below 1 is a ValueError that says so, before anything is taken from the input."""
    with publisher(vhost.amqp_url) as publishing, pytest.raises(ValueError, match="at least 1"):
        publishing.publish_many([message()], window=0)


@pytest.mark.one_broker
def test_a_queue_without_a_leader_is_waited_for(own_broker: Broker) -> None:
    """A broker that is killed and comes back in the middle of a window costs no message its outcome ok."""
    with own_broker.fresh_vhost() as vhost:
        declare_queue(vhost)
        with publisher(vhost.amqp_url) as publishing:
            sent = [message() for _ in range(3000)]

            def source() -> Iterator[Outgoing]:
                for n, each in enumerate(sent):
                    if n == 1500:
                        with Management(vhost.management_url, vhost.name) as management:
                            wait_until(
                                lambda: bool((management.queue(QUEUE) or pytest.fail("gone")).ready),
                                PATIENCE,
                                "messages are counted",
                            )
                        own_broker.kill()
                        own_broker.restart()
                    yield each

            published = list(publishing.publish_many(source(), window=200, patience=2 * PATIENCE))
        assert outcomes(published) == [OK] * 3000
        assert set(ids(drained(vhost))) >= {each.message_id for each in sent}
