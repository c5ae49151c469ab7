"""What goes wrong while letters are sent back: said clearly, nothing lost, and the rest goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import amqp
import pytest
from kombu import Connection

from tests.support.apps import WORK, declare, shop
from tests.support.letters import LETTERS, TASK, a_letter, as_letter, numbered, put
from tests.support.publishing import drained, ids
from tests.support.raw_amqp import open_channel
from unlost.broker.frames import encode_properties
from unlost.broker.management import Management
from unlost.core import headers as h
from unlost.core.message import Outgoing
from unlost.deadletter import DeadLetters, Pace, Redrive, Report
from unlost.deadletter.table import LetterTable
from unlost.errors import AccessRefused, QueueMissing
from unlost.testing.brokers import Vhost

pytestmark = pytest.mark.one_broker

#: RabbitMQ's default; the header frame must hold all headers.
FRAME = 131_072

#: ``max_message_size`` of RabbitMQ 4, by default.
LARGEST = 16 * 1024 * 1024


@pytest.fixture
def url(vhost: Vhost) -> str:
    """A vhost with the shop's topology."""
    declare(vhost, shop())
    return vhost.amqp_url


@pytest.fixture
def desk(url: str, tmp_path: Path) -> DeadLetters:
    """A desk without a ledger."""
    return DeadLetters(url, folder=tmp_path, actor="tester")


def test_a_queue_that_vanishes_ends_the_redrive_and_what_was_sent_is_safe(
    vhost: Vhost, desk: DeadLetters
) -> None:
    """The error names the queue; every letter that the report counts as sent is in the work queue."""
    put(vhost.amqp_url, numbered(300))
    seen: list[int] = []

    def delete_queue(report: Report) -> None:
        if not seen:
            with open_channel(vhost.amqp_url) as channel:
                channel.queue_delete(LETTERS)
        seen.append(report.sent)

    with pytest.raises(QueueMissing, match=LETTERS):
        desk.redrive(LETTERS, pace=Pace(canary=0, window=50), blind=True, on_progress=delete_queue)
    sent = ids(drained(vhost, WORK))
    assert len(set(sent)) == len(sent) >= seen[-1] > 0


@contextmanager
def user(vhost: Vhost, **rights: str) -> Iterator[Connection]:
    """Yield a connection of a user who may do only so much in the vhost."""
    name = f"limited-{vhost.name}"
    with Management(vhost.management_url, "/") as management:
        management._request("PUT", f"users/{name}", json={"password": "pw", "tags": ""})
        granted = {"configure": "", "write": "", "read": "", **rights}
        management._request("PUT", f"permissions/{vhost.name}/{name}", json=granted)
        try:
            yield Connection(vhost.amqp_url).clone(userid=name, password="pw")
        finally:
            management._request("DELETE", f"users/{name}")


def test_without_the_permission_to_publish_every_letter_stays(vhost: Vhost, url: str, tmp_path: Path) -> None:
    """A user who may read letters and not publish gets each counted as failed, with the reason."""
    put(url, numbered(30))
    with user(vhost, read=".*") as theirs:
        report = DeadLetters(theirs, folder=tmp_path).redrive(
            LETTERS, pace=Pace(canary=0, window=10), blind=True
        )
    assert (report.sent, report.is_clean) == (0, False)
    assert "refused" in " ".join(report.failed)
    assert sorted(ids(drained(vhost, LETTERS))) == sorted(f"m{number}.0.1" for number in range(30))


def test_without_the_permission_to_watch_nothing_is_sent(vhost: Vhost, url: str, tmp_path: Path) -> None:
    """A user who may not watch what comes back is told what to grant, before the first letter goes."""
    put(url, numbered(3))
    with user(vhost, read=".*", write=".*") as theirs, pytest.raises(AccessRefused, match="--blind"):
        DeadLetters(theirs, folder=tmp_path).redrive(LETTERS)
    assert len(drained(vhost, LETTERS)) == 3


def large(size: int = 0) -> Outgoing:
    """Make a letter with so many bytes of ballast in its headers."""
    headers = {h.QUEUE: WORK, "ballast": "x" * size}
    properties = {"message_id": "large", "delivery_mode": 2}
    return Outgoing(exchange="", routing_key=LETTERS, body="x", headers=headers, properties=properties)


def largest() -> Outgoing:
    """Make a letter to which the broker can add its count of deliveries, and nobody what a redrive adds."""
    frame_and_content_header = 8 + 12
    return large(FRAME - frame_and_content_header - len(encode_properties(large())) - 60)


def test_a_letter_that_has_grown_beyond_a_frame_stays_alone(vhost: Vhost, desk: DeadLetters) -> None:
    """A letter whose headers would not fit any more stays, with the reason; the others are sent."""
    put(vhost.amqp_url, [*numbered(2), largest(), a_letter("m9")])
    report = desk.redrive(LETTERS, pace=Pace(canary=0), blind=True)
    assert (report.sent, sum(report.failed.values())) == (3, 1)
    assert "headers that fit into a frame" in next(iter(report.failed))
    assert ids(drained(vhost, LETTERS)) == ["large"]


def test_a_letter_of_an_unknown_task_stays(vhost: Vhost, desk: DeadLetters) -> None:
    """A task that the application does not have would only die again: its letter stays, and is counted."""
    put(vhost.amqp_url, [a_letter("m1"), a_letter("m2", task="shop.gone")])
    report = desk.redrive(LETTERS, Redrive(tasks={TASK}), blind=True)
    assert (report.sent, report.kept["unknown-task"]) == (1, 1)
    assert ids(drained(vhost, LETTERS)) == ["m2.0.1"]


def test_a_letter_without_any_header_is_read_and_stays_without_a_target(
    vhost: Vhost, desk: DeadLetters
) -> None:
    """What says nothing of where it died is shown, stays without ``to``, and goes where ``to`` says."""
    with open_channel(vhost.amqp_url) as channel:
        channel.basic_publish_confirm(amqp.Message(b"\x00", delivery_mode=2), "", LETTERS, timeout=10)
    (letter,) = desk.letters(LETTERS)
    facts: tuple[Any, ...] = (letter.id, letter.task, letter.reason, letter.identity, letter.timeline())
    assert facts == ("", "", "unknown", None, [])
    assert desk.redrive(LETTERS, blind=True).kept["no-origin"] == 1
    assert desk.redrive(LETTERS, Redrive(to=WORK), blind=True).sent == 1
    assert drained(vhost, WORK)[0].body in (b"\x00", "\x00")


def test_a_letter_that_is_too_large_stays(vhost: Vhost, desk: DeadLetters, tmp_path: Path) -> None:
    """A body above the broker's limit is counted with both sizes, and stays where it is; the others go."""
    with Management(vhost.management_url, vhost.name) as management:
        if management.version() < (4, 0):
            pytest.skip("takes 128 MiB")
    url = f"sqlite:///{tmp_path / 'letters.sqlite'}"
    letters = [as_letter(each) for each in numbered(3)]
    letters[1] = replace(letters[1], body=b"x" * (LARGEST + 1))
    with LetterTable(url, create=True) as table:
        table.append(letters, {})
    report = desk.redrive(url, blind=True)
    assert (report.sent, sum(report.failed.values()), report.is_clean) == (2, 1, False)
    assert ids(drained(vhost, WORK)) == ["m0.1.1", "m2.1.1"]
    assert [letter.id for letter in desk.letters(url)] == ["m1"]
    reason = next(iter(report.failed))
    assert f"message size {LARGEST + 1} is larger than configured max size {LARGEST}" in reason
