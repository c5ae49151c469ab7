"""The operator's desk on live brokers: what is sent back, what stays, and why."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import amqp
import pytest
from kombu import Connection
from pydantic import BaseModel

from tests.support.apps import OTHER, WORK, declare, shop
from tests.support.letters import DLX, LETTERS, TASK, a_letter, numbered, put
from tests.support.publishing import declare_queue, drained, ids
from tests.support.raw_amqp import open_channel
from unlost.broker.management import Management
from unlost.core import headers as h
from unlost.core.ids import Generation, MessageId
from unlost.core.message import Outgoing
from unlost.core.settlement import Row, State
from unlost.deadletter import DeadLetters, Pace, Redrive, Selection
from unlost.deadletter.edit import Edit
from unlost.errors import AccessRefused, JournalError, QueueMissing
from unlost.testing.brokers import Vhost

pytestmark = pytest.mark.one_broker

BLIND: dict[str, Any] = {"blind": True}


@pytest.fixture
def url(vhost: Vhost) -> str:
    """A vhost with the shop's topology."""
    declare(vhost, shop())
    return vhost.amqp_url


@pytest.fixture
def desk(url: str, tmp_path: Path) -> DeadLetters:
    """A desk without a ledger."""
    return DeadLetters(url, folder=tmp_path, actor="tester")


class Ledger:
    """A ledger in which some messages are done."""

    def __init__(self, *done: str, state: State = State.DONE) -> None:
        self.rows = dict.fromkeys(done, state)

    def read_many(self, messages: Collection[MessageId]) -> dict[MessageId, Row]:
        """Return the rows of messages that are done."""
        return {
            each: Row(state=self.rows[each.id], generation=Generation(0, 1), token=1)
            for each in messages
            if each.id in self.rows
        }


@contextmanager
def worker(url: str, queue: str, act: Callable[[amqp.Channel, amqp.Message], None]) -> Iterator[None]:
    """Consume a queue in a thread, acking each message after it was acted upon."""
    stop = threading.Event()

    def work() -> None:
        with open_channel(url) as channel:
            arrived: deque[amqp.Message] = deque()
            channel.basic_consume(queue, callback=arrived.append)
            while not stop.is_set():
                while arrived:
                    message = arrived.popleft()
                    act(channel, message)
                    channel.basic_ack(message.delivery_tag)
                with suppress(TimeoutError):
                    channel.connection.drain_events(timeout=0.05)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def dies_again(channel: amqp.Channel, message: amqp.Message) -> None:
    """Publish a letter of a redriven message, as a worker does whose task fails."""
    headers = dict(message.headers)
    again = h.letter(
        headers, h.generation_of(headers), h.Failure(reason="permanent", exception="still broken")
    )
    letter = amqp.Message(message.body, application_headers=again, delivery_mode=2)
    channel.basic_publish_confirm(letter, DLX, WORK, timeout=10)


def test_a_redriven_message_is_as_good_as_new(vhost: Vhost, desk: DeadLetters) -> None:
    """It goes to the queue it died in under the same id, one redrive later, with nothing of its death."""
    past: dict[str, Any] = {h.CRASHES: 3, "x-unlost-holds": 2}
    put(vhost.amqp_url, [a_letter("m1", **past)])
    report = desk.redrive(LETTERS, **BLIND)
    assert (report.sent, report.is_clean) == (1, True)
    (message,) = drained(vhost, WORK)
    headers = message.headers
    assert (headers["id"], headers[h.REDRIVES], headers[h.ATTEMPT], headers["retries"]) == ("m1", 1, 1, 0)
    assert message.properties["message_id"] == "m1.1.1"
    assert not [name for name in headers if "death" in name or name in (h.CRASHES, h.HOLDS)]
    assert json.loads(message.body) == [[], {"order": 1}, {}]
    assert drained(vhost, LETTERS) == []


def test_only_what_is_meant_is_sent(vhost: Vhost, desk: DeadLetters) -> None:
    """Letters of a selection go, in order, and the others stay in theirs."""
    put(vhost.amqp_url, numbered(20))
    meant = Selection(where="kwargs.order >= `15`")
    assert desk.preview(LETTERS, Redrive(selection=meant)).sent == 5
    report = desk.redrive(LETTERS, Redrive(selection=meant), **BLIND)
    assert (report.sent, report.kept["not-selected"]) == (5, 15)
    assert ids(drained(vhost, WORK)) == [f"m{number}.1.1" for number in range(15, 20)]
    assert ids(drained(vhost, LETTERS)) == [f"m{number}.0.1" for number in range(15)]


def test_a_dry_run_changes_nothing(vhost: Vhost, desk: DeadLetters, tmp_path: Path) -> None:
    """A preview counts what would be sent, writes no file and takes nothing."""
    put(vhost.amqp_url, [*numbered(3), a_letter("m1", order=1)])
    report = desk.preview(LETTERS, Redrive())
    assert (report.sent, report.acked) == (3, 1)
    assert list(tmp_path.iterdir()) == []
    assert len(drained(vhost, LETTERS)) == 4


def test_two_letters_of_one_message_are_one(vhost: Vhost, desk: DeadLetters) -> None:
    """Copies of one letter are sent once, wherever they lie; another redrive number is another letter."""
    one, other = a_letter("m1"), a_letter("m2", redrives=1)
    copies = [one, other, a_letter("m3"), one, one, other]
    put(vhost.amqp_url, copies)
    report = desk.redrive(LETTERS, pace=Pace(canary=0, window=2), **BLIND)
    assert (report.sent, report.acked) == (3, 3)
    assert sorted(ids(drained(vhost, WORK))) == ["m1.1.1", "m2.2.1", "m3.1.1"]


def test_what_is_done_stays_and_is_counted(vhost: Vhost, url: str, tmp_path: Path) -> None:
    """The letter of a message that the ledger knows as done or cancelled is not sent back."""
    put(url, numbered(3))
    desk = DeadLetters(url, folder=tmp_path, rows=Ledger("m1"))
    assert desk.preview(LETTERS, Redrive()).kept["done"] == 1
    report = desk.redrive(LETTERS, **BLIND)
    assert (report.sent, report.kept["done"]) == (2, 1)
    assert ids(drained(vhost, LETTERS)) == ["m1.0.1"]


def test_what_another_message_has_done_under_its_key_stays(vhost: Vhost, url: str, tmp_path: Path) -> None:
    """The letter of a message whose idempotency key is done already is not sent back."""
    put(url, numbered(3))
    desk = DeadLetters(
        url,
        folder=tmp_path,
        rows=Ledger("1"),
        key_of=lambda letter: MessageId("key:orders", str(letter.arguments[1]["order"])),  # type: ignore[index]
    )
    assert desk.preview(LETTERS, Redrive()).kept["key-done"] == 1
    report = desk.redrive(LETTERS, **BLIND)
    assert (report.sent, report.kept["key-done"]) == (2, 1)
    assert ids(drained(vhost, LETTERS)) == ["m1.0.1"]


def test_a_letter_is_sent_back_only_so_often(vhost: Vhost, desk: DeadLetters) -> None:
    """A letter with as many redrives as allowed stays, unless more are allowed."""
    put(vhost.amqp_url, [a_letter("m1", redrives=3)])
    assert desk.redrive(LETTERS, **BLIND).kept["limit"] == 1
    assert desk.redrive(LETTERS, Redrive(max_redrives=4), **BLIND).sent == 1
    assert ids(drained(vhost, WORK)) == ["m1.4.1"]


def test_a_broken_group_stops_at_its_canary(vhost: Vhost, desk: DeadLetters) -> None:
    """When redriven tasks die again no more than the canary is sent; all letters are in the queue."""
    put(vhost.amqp_url, numbered(100))
    with worker(vhost.amqp_url, WORK, dies_again):
        report = desk.redrive(LETTERS, pace=Pace(canary=5, window=20, watch=timedelta(seconds=60)))
    assert report.sent == 5
    assert report.stopped is not None
    assert "died again" in report.stopped
    left = drained(vhost, LETTERS)
    assert len({str(each.headers["id"]) for each in left}) == len(left) == 100


def test_without_the_watch_a_broken_group_is_not_noticed(vhost: Vhost, desk: DeadLetters) -> None:
    """The control: blind, all of the broken group is sent."""
    put(vhost.amqp_url, numbered(100))
    with worker(vhost.amqp_url, WORK, dies_again):
        report = desk.redrive(LETTERS, pace=Pace(canary=5, window=20), **BLIND)
    assert report.sent == 100
    assert report.stopped is None


def test_a_group_that_breaks_after_the_canary_stops_within_a_window(vhost: Vhost, desk: DeadLetters) -> None:
    """When the canary is well and the rest is not, the redrive ends long before the last letter."""
    put(vhost.amqp_url, numbered(400))
    handled: list[str] = []

    def breaks_after_the_canary(channel: amqp.Channel, message: amqp.Message) -> None:
        handled.append(message.headers["id"])
        if len(handled) > 5:
            dies_again(channel, message)

    pace = Pace(canary=5, window=20, rate=40.0, watch=timedelta(seconds=3), max_failures=0.2)
    with worker(vhost.amqp_url, WORK, breaks_after_the_canary):
        report = desk.redrive(LETTERS, pace=pace)
    assert report.stopped is not None
    assert report.sent <= pace.canary + 4 * pace.window
    assert report.sent + len(drained(vhost, LETTERS)) - report.came_back >= 400 - report.came_back


def test_a_canary_that_the_ledger_knows_as_done_lets_the_rest_go(
    vhost: Vhost, url: str, tmp_path: Path
) -> None:
    """With a ledger the canary passes as soon as all of it is done, without waiting for the time to pass."""
    put(url, numbered(30))
    ledger = Ledger()
    desk = DeadLetters(url, folder=tmp_path, rows=ledger)

    def done(_channel: amqp.Channel, message: amqp.Message) -> None:
        ledger.rows[message.headers["id"]] = State.DONE

    with worker(url, WORK, done):
        report = desk.redrive(LETTERS, pace=Pace(canary=5, watch=timedelta(minutes=4)))
    assert (report.sent, report.stopped) == (30, None)


def test_a_canary_of_which_nothing_can_be_told_stops(vhost: Vhost, url: str, tmp_path: Path) -> None:
    """With a ledger and no worker the canary is undecided, which is no success."""
    put(url, numbered(30))
    rows = Ledger(*(f"m{number}" for number in range(30)), state=State.WAITING)
    desk = DeadLetters(url, folder=tmp_path, rows=rows)
    report = desk.redrive(LETTERS, pace=Pace(canary=5, watch=timedelta(seconds=1)))
    assert (report.sent, report.undecided) == (5, True)


def test_a_stopped_redrive_can_be_made_again(vhost: Vhost, desk: DeadLetters) -> None:
    """After a stop and a fix the same call sends all, also what had died again."""
    put(vhost.amqp_url, numbered(10))
    with worker(vhost.amqp_url, WORK, dies_again):
        assert desk.redrive(LETTERS, pace=Pace(canary=2)).stopped
    report = desk.redrive(LETTERS, pace=Pace(canary=2, watch=timedelta(seconds=1)))
    assert (report.sent, report.is_clean) == (10, True)


def test_a_letter_that_died_of_the_same_is_seen_as_a_loop(vhost: Vhost, desk: DeadLetters) -> None:
    """A letter that came back with the same failure is counted as a loop in its group."""
    put(vhost.amqp_url, [a_letter("m1")])
    desk.redrive(LETTERS, **BLIND)
    (message,) = drained(vhost, WORK)
    again = {name: value for name, value in message.headers.items() if name.startswith("x-unlost-redriven")}
    put(vhost.amqp_url, [a_letter("m1", order=7, redrives=1, **again)])
    (group,) = desk.groups(LETTERS)
    assert (group.letters, group.loops) == (1, 1)


def test_a_missing_target_stops_the_run_and_moves_nothing(vhost: Vhost, desk: DeadLetters) -> None:
    """A queue that does not exist is named, after the first window, and every letter stays."""
    put(vhost.amqp_url, numbered(30))
    report = desk.redrive(LETTERS, Redrive(to="no.such.queue"), pace=Pace(canary=0, window=10), **BLIND)
    assert report.sent == 0
    assert 10 <= sum(report.failed.values()) <= 20
    assert "no.such.queue" in str(report.stopped)
    assert len(drained(vhost, LETTERS)) == 30


def test_one_letter_that_cannot_be_sent_stays_alone(vhost: Vhost, desk: DeadLetters) -> None:
    """A letter whose queue is gone, one without an origin, and a broken header harm no other."""
    stray = Outgoing(exchange="", routing_key=LETTERS, body="x", properties={"message_id": "stray"})
    put(vhost.amqp_url, [*numbered(2), a_letter("gone", queue=OTHER).to(DLX, WORK), stray, *[a_letter("m9")]])
    with open_channel(vhost.amqp_url) as channel:
        channel.queue_delete(OTHER)
    report = desk.redrive(LETTERS, **BLIND)
    assert (report.sent, sum(report.failed.values()), report.kept["no-origin"]) == (3, 1, 1)
    assert sorted(ids(drained(vhost, LETTERS))) == ["gone.0.1", "stray"]


def test_letters_of_other_programs_are_read_and_sent_back(vhost: Vhost, desk: DeadLetters) -> None:
    """What the broker dead-lettered of any program tells where it died, and goes back there."""
    with open_channel(vhost.amqp_url) as channel:
        plain = amqp.Message(b"\xff not json", delivery_mode=2, message_id="their-1")
        channel.basic_publish_confirm(plain, "", WORK, timeout=10)
        message = None
        while message is None:
            message = channel.basic_get(WORK)
        channel.basic_reject(message.delivery_tag, requeue=False)
    found: list[Any] = []
    while not found:
        found = list(desk.letters(LETTERS))
    letter = found[0]
    assert (letter.id, letter.task, letter.reason, letter.origin) == ("their-1", "", "rejected", WORK)
    assert letter.failed_at is not None
    assert desk.redrive(LETTERS, **BLIND).sent == 1
    (back,) = drained(vhost, WORK)
    assert (back.body, back.properties["message_id"]) == (b"\xff not json", "their-1")
    assert back.headers[h.REDRIVES] == 1
    assert "retries" not in back.headers


def test_a_body_is_sent_back_as_the_bytes_that_came(vhost: Vhost, desk: DeadLetters) -> None:
    """Whatever character set a letter names, nobody decodes it on the way; a signature covers bytes."""
    letter = a_letter("m1")
    properties = {**letter.properties, "content_encoding": "latin-1"}
    put(
        vhost.amqp_url,
        [replace(letter, body='[[], {"name": "\xe9"}, {}]'.encode("latin-1"), properties=properties)],
    )
    assert desk.redrive(LETTERS, **BLIND).sent == 1
    assert drained(vhost, WORK)[0].body == '[[], {"name": "\xe9"}, {}]'


def test_a_missing_permission_is_named(vhost: Vhost, url: str, tmp_path: Path) -> None:
    """A user who may not read the queue gets an error that says so, and no letter is touched."""
    put(url, numbered(2))
    with Management(vhost.management_url, "/") as management:
        user = f"reader-{vhost.name}"
        management._request("PUT", f"users/{user}", json={"password": "pw", "tags": ""})
        rights = {"configure": "", "write": "", "read": "^nothing$"}
        management._request("PUT", f"permissions/{vhost.name}/{user}", json=rights)
    try:
        theirs = Connection(url).clone(userid=user, password="pw")
        with pytest.raises(AccessRefused, match=r"shop\.work\.dlq"):
            list(DeadLetters(theirs, folder=tmp_path).letters(LETTERS))
    finally:
        with Management(vhost.management_url, "/") as management:
            management._request("DELETE", f"users/{user}")
    assert len(drained(vhost, LETTERS)) == 2


def test_a_queue_that_is_not_there_is_named(desk: DeadLetters) -> None:
    """Nothing can be sent from a queue that does not exist."""
    with pytest.raises(QueueMissing, match="nowhere"):
        desk.redrive("nowhere.dlq", **BLIND)


class Charge(BaseModel):
    """The payload of the task."""

    order: int
    amount: int = 0


def test_an_edit_is_checked_and_kept_in_the_journal(vhost: Vhost, desk: DeadLetters) -> None:
    """A valid edit changes the arguments and is journaled old and new; an invalid one sends nothing."""
    put(vhost.amqp_url, [a_letter("m1")])
    wrong = Edit.parse(["amount=much"], {TASK: Charge})
    report = desk.redrive(LETTERS, Redrive(edit=wrong), **BLIND)
    assert (report.sent, report.kept["invalid"]) == (0, 1)
    assert "shop.charge does not take that: amount" in next(iter(report.why))
    right = Edit.parse(["amount=5"], {TASK: Charge})
    report = desk.redrive(LETTERS, Redrive(edit=right), **BLIND)
    assert json.loads(drained(vhost, WORK)[0].body)[1] == {"order": 1, "amount": 5}
    (sent,) = [line for line in lines(Path(report.journal)) if "event" not in line and "sent" in line]
    assert json.loads(sent["old"])[1] == {"order": 1}
    assert json.loads(sent["new"])[1] == {"order": 1, "amount": 5}


def test_parked_letters_can_be_sent_back(vhost: Vhost, desk: DeadLetters) -> None:
    """A parked letter keeps all that it says, bears who parked it and why, and can be redriven from there."""
    declare_queue(vhost, "shop.parked")
    put(vhost.amqp_url, numbered(3))
    report = desk.park(LETTERS, "shop.parked", "bank is closed")
    assert (report.sent, report.is_clean) == (3, True)
    letter = next(desk.letters("shop.parked"))
    assert (letter.exception, letter.origin) == ("order 0 declined", WORK)
    assert letter.headers["x-unlost-parked-reason"] == "bank is closed"
    assert desk.redrive("shop.parked", **BLIND).sent == 3
    assert ids(drained(vhost, WORK)) == [f"m{number}.1.1" for number in range(3)]


def test_discarded_letters_can_be_put_back(vhost: Vhost, desk: DeadLetters, tmp_path: Path) -> None:
    """What was discarded is in the archive and comes back from it as it was."""
    put(vhost.amqp_url, numbered(5))
    before = [(letter.id, letter.body, dict(letter.headers)) for letter in desk.letters(LETTERS)]
    archive = tmp_path / "archive.jsonl"
    report = desk.discard(LETTERS, archive, "test orders", selection=Selection(tasks=frozenset({TASK})))
    assert (report.sent, drained(vhost, LETTERS)) == (5, [])
    assert desk.restore(archive).sent == 5
    after = [(letter.id, letter.body, dict(letter.headers)) for letter in desk.letters(LETTERS)]
    assert [each[:2] for each in after] == [each[:2] for each in before]
    assert after[0][2][h.DEATH_TRACEBACK] == before[0][2][h.DEATH_TRACEBACK]


def test_letters_are_kept_in_a_table_and_sent_back_from_it(
    vhost: Vhost, desk: DeadLetters, tmp_path: Path
) -> None:
    """In a database they are looked at, put back into their queue, and redriven from there."""
    put(vhost.amqp_url, numbered(6))
    url = f"sqlite:///{tmp_path / 'letters.sqlite'}"
    some = Selection(where="kwargs.order < `2`")
    assert desk.park(LETTERS, url, "bank is closed", selection=some).sent == 2
    assert desk.discard(LETTERS, url, "test orders").sent == 4
    assert drained(vhost, LETTERS) == []
    assert sum(group.letters for group in desk.groups(url)) == 6
    report = desk.restore(url, selection=Selection(ids=frozenset({"m0"})))
    assert (report.sent, report.kept["not-selected"]) == (1, 5)
    assert [letter.id for letter in desk.letters(LETTERS)] == ["m0"]
    assert desk.redrive(url, **BLIND).sent == 5
    assert ids(drained(vhost, WORK)) == [f"m{number}.1.1" for number in range(1, 6)]
    assert (list(desk.letters(url)), desk.redrive(url, **BLIND).sent) == ([], 0)


def test_exported_letters_stay(vhost: Vhost, desk: DeadLetters, tmp_path: Path) -> None:
    """An export copies letters to a file and leaves them; imported elsewhere they are the same."""
    put(vhost.amqp_url, numbered(4))
    file = tmp_path / "letters.jsonl"
    assert desk.export(LETTERS, file) == 4
    assert len(list(desk.letters(LETTERS))) == 4
    declare_queue(vhost, "elsewhere")
    assert desk.restore(file, to="elsewhere").sent == 4
    assert [each.id for each in desk.letters("elsewhere")] == ["m0", "m1", "m2", "m3"]


def test_what_was_done_is_in_the_audit_log(vhost: Vhost, desk: DeadLetters, tmp_path: Path) -> None:
    """Each run leaves who did what to which queue, and what came of it."""
    put(vhost.amqp_url, numbered(2))
    desk.redrive(LETTERS, **BLIND)
    begin, end = lines(tmp_path / "audit.jsonl")
    assert (begin["who"], begin["action"], begin["queue"]) == ("tester", "redrive", LETTERS)
    assert (end["action"], end["sent"]) == ("redrive-ended", 2)
    assert vhost.amqp_url.partition("@")[0].rpartition(":")[2] not in (tmp_path / "audit.jsonl").read_text()


def test_a_finished_journal_is_not_used_again(vhost: Vhost, desk: DeadLetters, tmp_path: Path) -> None:
    """A journal named by its path belongs to one run."""
    journal = tmp_path / "mine.jsonl"
    put(vhost.amqp_url, numbered(1))
    desk.redrive(LETTERS, journal=journal, **BLIND)
    with pytest.raises(JournalError, match="came to its end"):
        desk.redrive(LETTERS, journal=journal, **BLIND)


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON lines of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
