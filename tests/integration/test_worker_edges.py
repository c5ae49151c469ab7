"""Real workers where Celery has an opinion of its own: revokes, replacements, hooks, links, odd results."""

from __future__ import annotations

import json
import socket
import sqlite3
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.support.misbehaving_topology import TOPOLOGY
from tests.support.workers import SOON, Bench, bench
from unlost.broker.apply import apply
from unlost.broker.management import Management
from unlost.core.clock import epoch_ms
from unlost.testing.brokers import Vhost
from unlost.topology import naming
from unlost.topology.model import Topology

# What Celery does does not depend on the broker's release.
pytestmark = pytest.mark.one_broker

JSON = {"content_type": "application/json", "content_encoding": "utf-8"}

#: Deliveries are then worked off strictly one after the other.
ONE_AT_A_TIME = "--concurrency=1"

LEVELS = TOPOLOGY["delay"]["levels"]
UNROUTABLE = naming.unroutable_queue_of("t")


@pytest.fixture
def shop(vhost: Vhost, tmp_path: Path) -> Iterator[Bench]:
    """The misbehaving app on a fresh vhost, with a short lease."""
    with bench(vhost, tmp_path, UNLOST_LEASE="4") as made:
        yield made


def publish(shop: Bench, task: str, *args: Any, embed: Any = None, **headers: Any) -> str:
    """Publish as a plain Celery client does, which knows nothing of us; return the task id."""
    given: dict[str, Any] = {"lang": "py", "task": task, "id": uuid.uuid4().hex, "retries": 0, **headers}
    shop.publish_raw(json.dumps([args, {}, embed or {}]), given, **JSON)
    return str(given["id"])


def peek(shop: Bench) -> tuple[str, dict[str, Any]]:
    """Return body and headers of the message at the head of the queue, and leave it there."""
    with shop.channel() as channel:
        message = channel.basic_get("t.work")
        return message.body, message.properties["application_headers"]


def deliver_again(shop: Bench, copy: tuple[str, Mapping[str, Any]]) -> None:
    """Publish a copy of a message; returns when a worker that does one thing at a time has settled it.

    What its settlement dispatched has then run as well: it was queued before the second of the two markers.
    """
    body, headers = copy
    shop.publish_raw(body, headers, **JSON)
    work_off(shop)


def work_off(shop: Bench) -> None:
    """Wait until all that was queued, and all that came of it, is settled; one worker, one at a time."""
    for _ in range(2):
        marker = f"marker-{uuid.uuid4().hex}"
        publish(shop, "t.leaves_trace", marker)
        shop.wait_for(lambda marker=marker: shop.runs()[marker] == 1, "the marker ran")


def state_of(shop: Bench, task_id: str) -> str | None:
    """Return the ledger's state of a message."""
    found = [row for row in shop.rows("select message, state from unlost_messages") if task_id in row.message]
    return found[0].state if found else None


def reasons(shop: Bench) -> list[str]:
    """Return why each dead letter died."""
    return sorted(headers["x-unlost-death-reason"] for headers, _ in shop.letters())


def leftovers(shop: Bench) -> dict[str, int]:
    """Let the one worker settle all it has, stop it, and return what is still queued, dead letters apart.

    A warm stop flushes the last ack, which a task's effect precedes; and a consumer goes together with
    the return of what it had not acked, so the counts are exact.
    """
    work_off(shop)
    for worker in shop.workers:
        worker.terminate()
        worker.wait(SOON.total_seconds())
    names = [name for name in naming.queue_names("t", ["t.work"], LEVELS) if name != "t.work.dlq"]
    with shop.channel() as channel:
        shop.wait_for(
            lambda: channel.queue_declare("t.work", passive=True).consumer_count == 0, "the worker is gone"
        )
        queues = [channel.queue_declare(name, passive=True) for name in names]
    return {queue.queue: queue.message_count for queue in queues if queue.message_count}


def traces(shop: Bench) -> dict[str, int]:
    """Return how often each body ran, the markers' apart."""
    return {label: ran for label, ran in shop.runs().items() if not label.startswith("marker-")}


def revoke(shop: Bench, task_id: str, *, terminate: bool = False) -> None:
    """Revoke a task; returns when the one worker has answered."""
    with Celery(broker=shop.vhost.amqp_url, set_as_current=False) as app:
        [answer] = app.control.revoke(task_id, terminate=terminate, reply=True, timeout=20, limit=1)
    assert "ok" in str(answer)


@pytest.mark.parametrize("when", ["it is delayed", "the slot is busy"])
def test_a_revoked_message_never_runs_and_the_ledger_says_so(shop: Bench, when: str) -> None:
    """A message that is revoked before it is delivered ends as ``cancelled`` and leaves its queue."""
    shop.start(ONE_AT_A_TIME)
    if when == "it is delayed":
        revoke(shop, "unwanted")
        shop.call("m.leaves_trace.apply_async(('unwanted',), task_id='unwanted', countdown=2)")
    else:
        publish(shop, "t.waits", "busy")
        shop.wait_for(lambda: shop.runs()["busy"] == 1, "the slot is busy")
        publish(shop, "t.leaves_trace", "unwanted", id="unwanted")
        revoke(shop, "unwanted")
        shop.call("m.note('release')")
    shop.wait_for(lambda: state_of(shop, "unwanted") == "cancelled", "it is cancelled")
    # The ledger knows of a revoke before the message comes.
    shop.wait_for(lambda: "t.leaves_trace[unwanted]" in shop.log(), "it was delivered")
    work_off(shop)
    assert shop.runs()["unwanted"] == 0
    assert shop.letters() == []
    assert leftovers(shop) == {}


def test_a_revoke_of_what_is_done_leaves_it_done(shop: Bench) -> None:
    """A copy of a done message that is revoked is acked; the row stays ``done``."""
    shop.start(ONE_AT_A_TIME)
    publish(shop, "t.effect", "done", id="late")
    shop.wait_for(lambda: state_of(shop, "late") == "done", "it is done")
    revoke(shop, "late")
    publish(shop, "t.effect", "done", id="late")
    work_off(shop)
    work_off(shop)
    assert state_of(shop, "late") == "done"
    assert shop.effects() == {"done": 1}
    assert "Discarding revoked task: t.effect[late]" in shop.log()
    assert leftovers(shop) == {}


def test_a_running_task_that_is_terminated_commits_nothing(shop: Bench) -> None:
    """``revoke(terminate=True)`` in the middle of a unit of work: cancelled, rolled back, no letter."""
    shop.start(ONE_AT_A_TIME)
    publish(shop, "t.holds_work", "half", id="half")
    shop.wait_for(lambda: shop.runs()["half"] == 1, "it runs")
    revoke(shop, "half", terminate=True)
    shop.wait_for(lambda: state_of(shop, "half") == "cancelled", "it is cancelled")
    publish(shop, "t.effect", "after")
    shop.wait_for(lambda: shop.effects() == {"after": 1}, "work goes on")
    work_off(shop)
    assert state_of(shop, "half") == "cancelled"
    assert shop.runs()["half"] == 1
    assert shop.letters() == []
    assert leftovers(shop) == {}


def test_a_body_that_outlives_its_termination_is_fenced(shop: Bench) -> None:
    """A body that ignores the signal cannot commit once its message is cancelled."""
    shop.start(ONE_AT_A_TIME)
    publish(shop, "t.outlives_its_end", "stubborn", id="stubborn")
    shop.wait_for(lambda: shop.runs()["stubborn"] == 1, "it runs")
    revoke(shop, "stubborn", terminate=True)
    shop.wait_for(lambda: state_of(shop, "stubborn") == "cancelled", "it is cancelled")
    shop.call("m.note('release')")
    publish(shop, "t.effect", "after")
    shop.wait_for(lambda: shop.effects()["after"] == 1, "work goes on")
    shop.wait_for(
        lambda: "Discarding revoked task: t.outlives" in shop.log(), "its copy came back and was acked"
    )
    work_off(shop)
    assert shop.effects() == {"after": 1}
    assert state_of(shop, "stubborn") == "cancelled"
    assert shop.letters() == []
    assert leftovers(shop) == {}


def test_what_a_plain_client_let_expire_is_a_letter(shop: Bench) -> None:
    """An ``expires`` in the past makes a letter ``expired``; Celery would ack the message away."""
    shop.start(ONE_AT_A_TIME)
    past = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    publish(shop, "t.leaves_trace", "stale", expires=past)
    shop.wait_for(shop.letters, "the letter is there")
    work_off(shop)
    [(headers, body)] = shop.letters()
    assert headers["x-unlost-death-reason"] == "expired"
    assert json.loads(body)[0] == ["stale"]
    assert shop.runs()["stale"] == 0
    assert leftovers(shop) == {}


def test_a_plain_clients_eta_is_kept_and_holds_no_slot(shop: Bench) -> None:
    """It runs when it is due and not before; the only slot works on something else meanwhile."""
    shop.start(ONE_AT_A_TIME)
    eta = datetime.now(UTC) + timedelta(seconds=3)
    publish(shop, "t.stamps_time", "due", eta=eta.isoformat())
    publish(shop, "t.stamps_time", "at-once")
    shop.wait_for(lambda: shop.states() == {"done": 2}, "both are done")
    at_once, due = sorted(shop.runs())
    assert int(at_once.rpartition("-")[2]) < epoch_ms(eta) <= int(due.rpartition("-")[2]) + 1
    assert "put back" not in shop.log()


@pytest.mark.parametrize("task", ["t.ignored_at_start", "t.broken_at_start"])
def test_what_goes_wrong_before_the_body_is_a_failure_of_the_attempt(shop: Bench, task: str) -> None:
    """``before_start`` that raises, ``Ignore`` too, is retried by the policy and then dead-lettered."""
    shop.start(ONE_AT_A_TIME)
    publish(shop, task, "never")
    shop.wait_for(shop.letters, "the letter is there")
    work_off(shop)
    assert reasons(shop) == ["budget-spent"]
    assert traces(shop) == {"before-start": 2}
    assert leftovers(shop) == {}


def test_a_replaced_task_hands_its_chain_to_the_replacement_once(shop: Bench) -> None:
    """The rest of the chain runs once, with the replacement's result; a redelivery dispatches nothing."""
    shop.call("from celery import chain; chain(m.replaces.si('r'), m.reports_result.s())()")
    copy = peek(shop)
    shop.start(ONE_AT_A_TIME)
    shop.wait_for(lambda: shop.runs()["received-r-replacement-done"] == 1, "the rest of the chain ran")
    deliver_again(shop, copy)
    assert traces(shop) == {
        "r": 1,
        "r-replacement": 1,
        "received-r-replacement-done": 1,
    }
    assert shop.effects() == {"r-replacement": 1}
    assert shop.letters() == []


def test_an_ignored_task_sends_no_link_ever(shop: Bench) -> None:
    """A body that raises ``Ignore`` is done without its links, also when it is delivered again."""
    shop.call("m.ignores.apply_async(('i',), link=m.reports_result.s())")
    copy = peek(shop)
    shop.start(ONE_AT_A_TIME)
    shop.wait_for(lambda: shop.runs()["i"] == 1, "it ran")
    deliver_again(shop, copy)
    assert traces(shop) == {"i": 1}
    assert state_of(shop, copy[1]["id"]) == "done"
    assert shop.letters() == []


def test_a_broken_failure_hook_costs_no_letter_and_makes_no_second(shop: Bench) -> None:
    """``on_failure`` may raise what it likes: the letter of the failure is there, once."""
    worker = shop.start(ONE_AT_A_TIME)
    publish(shop, "t.fails_twice_over", "f")
    shop.wait_for(shop.letters, "the letter is there")
    work_off(shop)
    [(headers, _)] = shop.letters()
    assert headers["x-unlost-death-reason"] == "permanent"
    assert headers["x-unlost-death-exception"] == "f can never succeed"
    assert shop.runs()["f"] == 1
    assert shop.runs()["hook"] >= 1
    assert worker.poll() is None


def test_a_success_hook_cannot_reject_what_is_done(shop: Bench) -> None:
    """``on_success`` that raises ``Reject`` leaves the message done, without a letter."""
    shop.start(ONE_AT_A_TIME)
    task_id = publish(shop, "t.rejected_afterwards", "s")
    shop.wait_for(lambda: shop.runs()["hook"] == 1, "the hook ran")
    work_off(shop)
    work_off(shop)
    assert state_of(shop, task_id) == "done"
    assert (shop.runs()["s"], shop.letters()) == (1, [])
    assert leftovers(shop) == {}


@pytest.mark.parametrize("patience", ["60", "1"], ids=["held meanwhile", "given back meanwhile"])
def test_a_letter_waits_for_an_exchange_that_is_gone(vhost: Vhost, tmp_path: Path, patience: str) -> None:
    """Without the dead-letter exchange the delivery stays; once it is there again so is the letter."""
    with without_dead_letter_exchange(vhost, tmp_path, patience) as shop:
        with Management(vhost.management_url, vhost.name) as management:
            apply(Topology.load(shop.folder / "topology.yaml"), management)
        # Between the exchange and its binding, two requests, a letter can only be unroutable.
        shop.wait_for(lambda: shop.letters() or shop.letters(UNROUTABLE), "the letter is there")
        work_off(shop)
        assert traces(shop) == {"p": 1}
        assert leftovers(shop) == {}


def test_what_the_ledger_cannot_read_ends_as_a_letter(vhost: Vhost, tmp_path: Path) -> None:
    """A row that this release does not understand is no loop: its message is parked and then a letter."""
    with bench(vhost, tmp_path, UNLOST_PARK="0.5") as shop:
        shop.start(ONE_AT_A_TIME)
        publish(shop, "t.effect", "odd", id="odd")
        shop.wait_for(lambda: state_of(shop, "odd") == "done", "it is done")
        with closing(sqlite3.connect(tmp_path / "store.sqlite", timeout=30)) as database, database:
            database.execute("update unlost_messages set state = 'frozen'")
        publish(shop, "t.effect", "odd", id="odd")
        publish(shop, "t.effect", "neighbour")
        shop.wait_for(lambda: reasons(shop) == ["not-admitted"], "it is a letter")
        [(letter, _)] = shop.letters()
        assert (letter["x-unlost-parks"], letter["x-unlost-death-exception-type"]) == (
            1,
            "builtins.ValueError",
        )
        assert "frozen" in letter["x-unlost-death-exception"]
        shop.wait_for(lambda: shop.effects() == {"odd": 1, "neighbour": 1}, "the neighbour ran")


def test_a_letter_that_no_queue_takes_is_kept_as_unroutable(vhost: Vhost, tmp_path: Path) -> None:
    """An exchange that has lost its bindings sends letters where an operator finds them."""
    with without_dead_letter_exchange(vhost, tmp_path, "60") as shop:
        with shop.channel() as channel:
            channel.exchange_declare(
                naming.dead_letter_exchange_of("t"), "direct", durable=True, auto_delete=False
            )
        shop.wait_for(lambda: shop.letters(UNROUTABLE), "the letter is there")
        work_off(shop)
        [(headers, _)] = shop.letters(UNROUTABLE)
        assert headers["x-unlost-death-reason"] == "permanent"
        assert shop.letters() == []


@contextmanager
def without_dead_letter_exchange(vhost: Vhost, folder: Path, patience: str) -> Iterator[Bench]:
    """Yield a bench whose exchange for letters is gone, and whose worker holds a letter."""
    with bench(vhost, folder, UNLOST_LEASE="4", UNLOST_SETTLE_PATIENCE=patience) as shop:
        shop.start(ONE_AT_A_TIME)
        with shop.channel() as channel:
            channel.exchange_delete(naming.dead_letter_exchange_of("t"))
        publish(shop, "t.permanent", "p")
        sign = "could not be published" if patience == "1" else "unlost.tasks.tracer._publish"
        shop.wait_for(lambda: sign in shop.log(), "the publish failed")
        assert shop.states() == {"dead": 1}
        assert shop.letters() == []
        yield shop


def test_a_plain_task_of_the_same_app_retries_in_celerys_way(shop: Bench) -> None:
    """``self.retry(countdown=1)`` of a task that is not reliable comes back by the delay path."""
    shop.start(ONE_AT_A_TIME)
    publish(shop, "t.plain", "plain")
    shop.wait_for(lambda: shop.runs()["plain"] == 2, "it ran again")
    work_off(shop)
    assert shop.letters() == []
    assert leftovers(shop) == {}


def test_a_plain_task_that_was_delayed_retries_too(shop: Bench) -> None:
    """The exchange and key that Celery copies from a delayed delivery are the delay path's."""
    shop.start(ONE_AT_A_TIME)
    shop.call("m.plain.apply_async(('plain',), countdown=1)")
    shop.wait_for(lambda: shop.runs()["plain"] == 2, "it ran again")
    work_off(shop)
    assert shop.letters() == []
    assert leftovers(shop) == {}


MALFORMED: dict[str, dict[str, Any]] = {
    "stamped headers": {"stamped_headers": 5},
    "stamps": {"stamped_headers": ["a"], "stamps": 5},
    "embed replaces the request": {"embed": {"properties": 5}},
    "callbacks": {"embed": {"callbacks": 5}},
    "links that are numbers": {"embed": {"callbacks": [5, 6]}},
    "a link without a task": {"embed": {"callbacks": [{}]}},
    "a chain of numbers": {"embed": {"chain": [5]}},
    "errbacks that are numbers": {"embed": {"errbacks": [5]}},
}


def test_many_malformed_messages_block_no_worker(shop: Bench) -> None:
    """Two of each kind, more than there are slots, end as letters, and work goes on."""
    shop.start("--concurrency=2")
    for malformed in [*MALFORMED.values()] * 2:
        publish(shop, "t.effect", "never", **malformed)
    publish(shop, "t.effect", "after")
    shop.wait_for(lambda: shop.effects()["after"] == 1, "work goes on")
    shop.wait_for(lambda: len(shop.letters()) == 2 * len(MALFORMED), "all letters are there")
    assert reasons(shop) == ["malformed"] * 2 * len(MALFORMED)
    assert shop.effects() == {"after": 1}
    assert leftovers(shop) == {}


def test_a_link_receives_a_returned_model_as_its_fields(shop: Bench) -> None:
    """A pydantic model that a body returns travels as a mapping."""
    shop.start(ONE_AT_A_TIME)
    shop.call("m.returns_model.apply_async((3,), link=m.reports_result.s())")
    shop.wait_for(lambda: shop.states() == {"done": 2}, "both are done")
    assert shop.runs() == {"returned": 1, "received-{'number': 3}": 1}


@pytest.mark.parametrize("task", ["t.returns_object", "t.records_object"])
def test_a_result_that_cannot_be_kept_is_a_permanent_failure(shop: Bench, task: str) -> None:
    """It would be the same at every attempt: one run, a letter, and no row of its unit of work."""
    shop.start(ONE_AT_A_TIME)
    publish(shop, task, "o")
    shop.wait_for(shop.letters, "the letter is there")
    work_off(shop)
    assert reasons(shop) == ["permanent"]
    assert traces(shop) == {"o": 1}
    assert shop.effects() == {}
    assert leftovers(shop) == {}


def test_an_odd_result_after_the_commit_undoes_nothing(shop: Bench) -> None:
    """What is returned behind a committed unit of work is no failure: the link runs, the errback never."""
    shop.start(ONE_AT_A_TIME)
    shop.call(
        "m.commits_and_returns_object.apply_async(('o',), link=m.reports_result.s(),"
        " link_error=m.leaves_trace.si('errback'))"
    )
    shop.wait_for(lambda: shop.runs()["received-o-done"] == 1, "the link ran")
    work_off(shop)
    assert shop.runs()["o"] == 1
    assert shop.runs()["errback"] == 0
    assert shop.effects() == {"o": 1}
    assert shop.letters() == []


def test_links_that_are_dispatched_again_run_once(shop: Bench) -> None:
    """A group and a chain as links: however often the message is delivered, each member runs once."""
    shop.call(
        "from celery import chain, group\n"
        "trace = m.leaves_trace\n"
        "pair = lambda of, name: of(trace.si(f'{name}1'), trace.si(f'{name}2'))\n"
        "links = [pair(group, 'g'), pair(chain, 'c'), trace.si('l')]\n"
        "m.commits_then.apply_async(('d', 'kill'), link=links)"
    )
    copy = peek(shop)
    shop.start(ONE_AT_A_TIME)
    members = {"g1": 1, "g2": 1, "c1": 1, "c2": 1, "l": 1}
    shop.wait_for(lambda: members.items() <= shop.runs().items(), "all links ran")
    for _ in range(2):
        deliver_again(shop, copy)
    assert traces(shop) == {"d": 1, **members}
    assert shop.effects() == {"d": 1}
    shop.wait_for(lambda: set(shop.states()) == {"done"}, "all are done")


@pytest.mark.parametrize(
    ("late", "named"),
    [
        ({"task_acks_late": False}, "task_acks_late=False"),
        ({"task_acks_late": True}, "task_reject_on_worker_lost=None"),
    ],
    ids=["a wrong value", "a value that is gone"],
)
def test_settings_thrown_away_after_install_keep_a_worker_from_starting(
    vhost: Vhost, tmp_path: Path, late: dict[str, Any], named: str
) -> None:
    """``config_from_object`` after ``install`` drops what install set: status 2, and the setting's name."""
    with bench(vhost, tmp_path, TEST_CONFIG=json.dumps(late)) as shop:
        worker = shop.start(wait=False)
        assert worker.wait(30) == 2
        assert f"{named} contradicts unlost.install" in shop.log()
        assert "Traceback" not in shop.log()


def test_a_pool_that_does_not_fork_is_refused(shop: Bench) -> None:
    """What settles a task comes with the fork: status 2, the setting's name and the way out."""
    worker = shop.start(wait=False, module="tests.support.spawning")
    assert worker.wait(SOON.total_seconds()) == 2
    assert "worker_pool_start_method='spawn' starts processes in which no task is settled" in shop.log()


def test_a_process_forked_while_its_parent_logs_is_no_end_of_its_task(shop: Bench) -> None:
    """It hung at its own first line, on the lock of a stream that a thread of the parent was writing to."""
    shop.start("--max-tasks-per-child=1", module="tests.support.talkative")
    shop.call("for n in range(30): m.effect.delay(str(n))")
    shop.wait_for(lambda: shop.states() == {"done": 30}, "all are done")
    assert set(shop.runs().values()) == {1}


def test_a_spent_budget_of_celerys_own_ends_the_message(shop: Bench) -> None:
    """``retry(max_retries=0)`` is ``budget-spent`` although the class's policy would grant another."""
    shop.start(ONE_AT_A_TIME)
    publish(shop, "t.spends_its_own_budget", "b")
    shop.wait_for(shop.letters, "the letter is there")
    work_off(shop)
    [(headers, _)] = shop.letters()
    assert headers["x-unlost-death-reason"] == "budget-spent"
    assert headers["x-unlost-death-exception"] == "its own budget"
    assert traces(shop) == {"b": 1}
    assert leftovers(shop) == {}


def test_a_delivery_that_the_pool_has_lost_goes_back_to_the_broker(shop: Bench) -> None:
    """A job that no child ever accepts is given back and runs, and its child gets work again."""
    shop.start("--concurrency=1", module="tests.support.forgetful")
    shop.call("m.effect.delay('lost'); m.effect.delay('after')")
    shop.wait_for(lambda: shop.states() == {"done": 2}, "both are done", timedelta(seconds=60))
    assert shop.effects() == {"lost": 1, "after": 1}
    assert "the pool has lost it" in shop.log()


def test_a_control_queue_that_an_older_connection_holds_keeps_no_worker_from_work(shop: Bench) -> None:
    """To the broker a connection may live that its worker has lost: it consumes all the same, and answers."""
    with shop.channel() as older:
        older.queue_declare(f"w0@{socket.gethostname()}.celery.pidbox", exclusive=True)
        shop.start()
        publish(shop, "t.effect", "after")
        shop.wait_for(lambda: shop.effects() == {"after": 1}, "it is done")
        answer = shop.call("print([*m.app.control.ping(timeout=5)[0]][0])")
    assert answer.strip() == f"w0@{socket.gethostname()}"


def nested(levels: int) -> Any:
    """Return a list in a list in a list."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("levels", [310, 600, 900])
def test_what_is_nested_too_deeply_for_the_pool_is_a_letter(shop: Bench, levels: int) -> None:
    """Also while all processes are busy, when the pool takes it from within the end of another task."""
    worker = shop.start()
    shop.call("[m.works.delay(str(n), 0.5) for n in range(4)]")
    publish(shop, "t.effect", nested(levels))
    link = {"task": "t.effect", "args": nested(levels), "kwargs": {}, "options": {}}
    publish(shop, "t.effect", "x", embed={"callbacks": [link]})
    shop.call("m.effect.delay('after')")
    shop.wait_for(lambda: shop.effects()["after"] == 1 and len(shop.letters()) == 2, "two are letters")
    assert {headers["x-unlost-death-reason"] for headers, _ in shop.letters()} <= {"malformed", "undecodable"}
    assert shop.effects() == {**dict.fromkeys("0123", 1), "after": 1}
    assert worker.poll() is None


def test_what_cannot_be_pickled_is_a_letter_and_takes_no_place_in_the_pool(shop: Bench) -> None:
    """Whether a process is idle then or the pool takes it from within the end of another task."""
    worker = shop.start()
    stuck = {"__type__": "stuck", "__value__": 0}
    for _ in range(3):
        publish(shop, "t.effect", stuck)
    shop.wait_for(lambda: len(shop.letters()) == 3, "three are letters")
    shop.call("[m.works.delay(str(n), 0.5) for n in range(4)]")
    publish(shop, "t.effect", stuck)
    shop.call("m.effect.delay('after')")
    shop.wait_for(lambda: shop.effects()["after"] == 1 and len(shop.letters()) == 4, "so is the fourth")
    assert {headers["x-unlost-death-reason"] for headers, _ in shop.letters()} == {"malformed"}
    assert shop.effects() == {**dict.fromkeys("0123", 1), "after": 1}
    assert worker.poll() is None


def test_the_times_of_an_older_body_hold(shop: Bench) -> None:
    """Arguments and times in one mapping: what is due later waits, and what has expired is a letter."""
    shop.start()
    due = datetime.now(UTC) + timedelta(seconds=3)
    for label, times in (
        ("later", {"eta": due.isoformat()}),
        ("expired", {"expires": (due - timedelta(hours=1)).isoformat()}),
    ):
        headers = {"lang": "py", "task": "t.effect", "id": uuid.uuid4().hex}
        body = {**headers, "args": [label], "kwargs": {}, **times}
        shop.publish_raw(json.dumps(body), headers, **JSON)
    shop.wait_for(lambda: shop.effects() == {"later": 1}, "one has run")
    assert datetime.now(UTC) >= due
    shop.wait_for(lambda: len(shop.letters()) == 1, "the other is a letter")
    assert shop.letters()[0][0]["x-unlost-death-reason"] == "expired"
