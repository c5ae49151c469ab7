"""Real workers on a real broker: every delivery is settled once, for a reason that can be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.workers import Bench, bench
from unlost.testing.brokers import Vhost


@pytest.fixture
def shop(vhost: Vhost, tmp_path: Path) -> Iterator[Bench]:
    """The misbehaving app on a fresh vhost, with a short lease."""
    with bench(vhost, tmp_path, UNLOST_LEASE="4") as made:
        yield made


def test_a_task_runs_once_and_its_link_receives_the_recorded_result(shop: Bench) -> None:
    """The effect happens once and the linked task gets what the unit of work recorded."""
    shop.start()
    shop.call("m.effect.apply_async(('a',), link=m.reports_result.s())")
    shop.wait_for(lambda: shop.runs()["received-a-done"] == 1, "the link ran")
    assert shop.effects() == {"a": 1}


def test_a_failure_is_retried_and_then_dead_lettered_with_its_reason(shop: Bench) -> None:
    """Two attempts are made a second apart; then the letter carries reason, exception, attempt, queue."""
    shop.start()
    shop.call("m.fails.delay('f')")
    shop.wait_for(lambda: shop.states()["dead"] == 1 and shop.letters(), "the letter is there")
    [(headers, body)] = shop.letters()
    assert shop.runs()["f"] == 2
    assert headers["x-unlost-death-reason"] == "budget-spent"
    assert headers["x-unlost-death-exception-type"] == "builtins.RuntimeError"
    assert headers["x-unlost-death-exception"] == "f failed at attempt 2"
    assert "RuntimeError: f failed at attempt 2" in headers["x-unlost-death-traceback"]
    assert (headers["x-unlost-attempt"], headers["x-unlost-queue"]) == (2, "t.work")
    assert json.loads(body)[0] == ["f"]


def test_a_letter_that_is_moved_back_by_any_tool_is_run_again(shop: Bench) -> None:
    """The letter as it lies there, published to its queue, is a redrive with a budget of its own."""
    shop.start()
    shop.call("m.fails.delay('f')")
    shop.wait_for(shop.letters, "the letter is there")
    [(headers, body)] = shop.letters()
    shop.publish_raw(body, headers, content_type="application/json", content_encoding="utf-8")
    shop.wait_for(lambda: len(shop.letters()) == 2, "it failed again")
    again = shop.letters()[1][0]
    assert (again["x-unlost-redrives"], again["x-unlost-attempt"]) == (1, 2)
    assert shop.runs()["f"] == 4


def test_a_permanent_failure_is_not_retried(shop: Bench) -> None:
    """``Permanent`` makes a letter of the first attempt."""
    shop.start()
    shop.call("m.permanent.delay('p')")
    shop.wait_for(shop.letters, "the letter is there")
    assert shop.runs()["p"] == 1
    assert shop.letters()[0][0]["x-unlost-death-reason"] == "permanent"


def test_celerys_own_retry_works_and_keeps_the_message(shop: Bench) -> None:
    """``self.retry(countdown=1)`` makes a second attempt of the same message, and it ends done."""
    shop.start()
    shop.call("m.celery_retry.delay('r')")
    shop.wait_for(lambda: shop.states()["done"] == 1, "it is done")
    assert shop.runs()["r"] == 2
    assert shop.rows("select attempt from unlost_messages")[0].attempt == 2


@pytest.mark.parametrize("what", ["kill", "segv", "exit", "_exit", "memory", "kill-parent"])
def test_a_crash_before_the_commit_is_run_again_and_has_one_effect(shop: Bench, what: str) -> None:
    """Whatever ends the process in the middle of the work, the effect happens once, and the worker lives."""
    worker = shop.start()
    if what == "kill-parent":
        shop.start()
    shop.call(f"m.before_commit.delay('c', {what!r}); m.effect.delay('after')")
    shop.wait_for(lambda: shop.states()["done"] == 2, "both are done")
    assert shop.effects() == {"c": 1, "after": 1}
    assert shop.runs()["c"] == 2
    assert (worker.poll() is None) == (what != "kill-parent")
    [row] = shop.rows("select crashes, lost from unlost_messages where message like '%before_commit%'")
    assert (row.crashes, row.lost) == ((0, 1) if what == "kill-parent" else (1, 0))


@pytest.mark.parametrize("what", ["kill", "raise", "memory"])
def test_after_the_commit_nothing_undoes_it_and_the_link_is_still_sent(shop: Bench, what: str) -> None:
    """A crash or an exception after the commit repeats no effect; the chain goes on from the record."""
    shop.start()
    shop.call(f"m.commits_then.apply_async(('d', {what!r}), link=m.reports_result.s())")
    shop.wait_for(lambda: shop.runs()["received-d-done"] == 1, "the link ran")
    assert shop.effects() == {"d": 1}
    assert shop.runs()["d"] == 1
    assert shop.letters() == []


def test_poison_is_dead_lettered_after_three_crashes_and_its_neighbours_are_not(shop: Bench) -> None:
    """A message that kills its process every time ends as ``poison``; those beside it are done."""
    shop.start()
    shop.call("m.before_commit.delay('x', 'kill', 99)\nfor n in range(20): m.effect.delay(f'n{n}')")
    shop.wait_for(lambda: shop.states() == {"done": 20, "dead": 1} and shop.letters(), "all have ended")
    [(headers, _)] = shop.letters()
    assert (headers["x-unlost-death-reason"], headers["x-unlost-crashes"]) == ("poison", 3)
    assert shop.runs()["x"] == 3
    assert set(shop.effects().values()) == {1}


def test_a_hard_time_limit_counts_as_a_crash(shop: Bench) -> None:
    """A task that never ends is stopped three times and then dead-lettered; the worker lives on."""
    worker = shop.start()
    shop.call("m.too_slow.delay('s')")
    shop.wait_for(shop.letters, "the letter is there")
    assert shop.letters()[0][0]["x-unlost-death-reason"] == "poison"
    assert shop.runs()["s"] == 3
    assert worker.poll() is None


def test_a_body_that_runs_twice_at_the_same_time_is_held_off(shop: Bench) -> None:
    """A copy of a message whose holder is alive waits, and finds it done; the body ran once."""
    shop.start()
    shop.call(
        "from unlost.testing.waiting import wait_until\n"
        "m.app.tasks['t.effect'].apply_async(('one',), task_id='same')\n"
        "m.app.tasks['t.effect'].apply_async(('one',), task_id='same')\n"
        "m.app.tasks['t.effect'].apply_async(('one',), task_id='same')"
    )
    shop.call("m.effect.delay('last')")
    shop.wait_for(lambda: shop.states() == {"done": 2}, "both messages are done")
    shop.wait_for(lambda: _queues_are_empty(shop), "no copy is left")
    assert shop.effects() == {"one": 1, "last": 1}


def _queues_are_empty(shop: Bench) -> bool:
    with shop.channel() as channel:
        return all(channel.queue_declare(name, passive=True).message_count == 0 for name in ("t.work",))


def test_a_payload_arrives_as_its_model_and_an_invalid_one_as_a_letter(shop: Bench) -> None:
    """``run`` gets the instance; what does not validate is dead-lettered, not retried."""
    shop.start()
    shop.call("m.parcel.delay(number=1); m.parcel.delay(m.Parcel(number=2))")
    shop.call("from celery import Task; Task.apply_async(m.parcel, kwargs={'number': 'many'})")
    shop.wait_for(shop.letters, "the letter is there")
    shop.wait_for(lambda: shop.runs()["parcel-2-Parcel"] == 1, "the good ones ran")
    assert shop.runs()["parcel-1-Parcel"] == 1
    assert shop.letters()[0][0]["x-unlost-death-reason"] == "invalid-payload"


def test_the_correlation_id_goes_on_to_every_task_published_from_a_task(shop: Bench) -> None:
    """Parent and child carry the same correlation id."""
    shop.start()
    shop.call("m.publishes.delay('k')")
    shop.wait_for(lambda: any(label.startswith("k-child-") for label in shop.runs()), "the child ran")
    parent, child = sorted(label.rpartition("-")[2] for label in shop.runs() if label.startswith("k-"))
    assert parent == child
    assert len(parent) == 32


def test_a_task_called_from_a_body_is_a_plain_call(shop: Bench) -> None:
    """Calling another task's body settles nothing of the caller's message."""
    shop.start()
    shop.call("m.calls.delay('direct')")
    shop.wait_for(lambda: shop.states() == {"done": 1}, "it is done")
    assert shop.runs()["direct-None"] == 1


def test_a_body_of_the_older_protocol_is_run(shop: Bench) -> None:
    """Headers of protocol 2 over a mapping with ``args``, as some clients send it: Celery takes it."""
    shop.start()
    body = '{"args": ["mapping"], "kwargs": {}, "retries": 0}'
    usual = {"content_type": "application/json", "content_encoding": "utf-8"}
    shop.publish_raw(body, {"task": "t.effect", "id": "older"}, **usual)
    shop.wait_for(lambda: shop.effects() == {"mapping": 1}, "it has its effect")
    assert shop.letters() == []


MALFORMED: dict[str, tuple[bytes | str, dict[str, Any], dict[str, Any]]] = {
    "no json": (b"{", {"task": "t.effect", "id": "1"}, {}),
    "no triple": ("[1, 2]", {"task": "t.effect", "id": "1"}, {}),
    "kwargs no mapping": ("[[1], 3, {}]", {"task": "t.effect", "id": "1"}, {}),
    "no id": ("[[], {}, {}]", {"task": "t.effect"}, {}),
    "no headers": ("[[], {}, {}]", {}, {}),
    "time limit of text": ('[["a"], {}, {}]', {"task": "t.effect", "id": "1", "timelimit": ["a", "b"]}, {}),
    "pickle": (
        b"\x80\x04N.",
        {"task": "t.effect", "id": "1"},
        {"content_type": "application/x-python-serialize"},
    ),
    "unknown task": ("[[], {}, {}]", {"task": "t.nobody_knows", "id": "1"}, {}),
}


def test_whatever_is_delivered_ends_as_a_letter_with_its_body_and_the_worker_lives(shop: Bench) -> None:
    """Malformed and unknown messages are dead-lettered with a reason and their raw body; work goes on."""
    shop.settings = {**shop.settings, "UNLOST_PARK": "0.5"}
    worker = shop.start()
    usual = {"content_type": "application/json", "content_encoding": "utf-8"}
    for body, headers, properties in MALFORMED.values():
        shop.publish_raw(body, headers, **{**usual, **properties})
    shop.call("m.effect.delay('after')")
    shop.wait_for(lambda: len(shop.letters()) == len(MALFORMED), "all letters are there")
    shop.wait_for(lambda: shop.effects() == {"after": 1}, "work goes on")
    letters = shop.letters()
    reasons = sorted(headers["x-unlost-death-reason"] for headers, _ in letters)
    assert set(reasons) <= {"malformed", "undecodable", "unknown-task"}
    bodies = {body if isinstance(body, bytes) else body.encode() for body, _, _ in MALFORMED.values()}
    assert {body for _, body in letters} == bodies
    assert worker.poll() is None


def test_an_unknown_task_waits_for_a_worker_that_knows_it(shop: Bench) -> None:
    """In a rolling deploy the old worker parks what only the new one can run; the new one runs it."""
    settings = shop.settings
    shop.settings = {**settings, "TEST_WITHOUT_TASKS": "t.effect"}
    old = shop.start()
    shop.settings = settings
    shop.call("m.effect.delay('new')")
    shop.wait_for(lambda: "is parked" in shop.log(), "the old worker has parked it")
    old.terminate()
    old.wait(30)
    shop.start()
    shop.wait_for(lambda: shop.effects() == {"new": 1}, "the new worker has run it")
    assert shop.letters() == []


def test_a_message_of_a_newer_release_waits_and_then_is_a_letter(shop: Bench) -> None:
    """Headers that this release cannot read are not guessed at."""
    shop.settings = {**shop.settings, "UNLOST_PARK": "0.5"}
    shop.start()
    headers = {"task": "t.effect", "id": "1", "x-unlost-v": 99}
    shop.publish_raw('[["a"], {}, {}]', headers, content_type="application/json", content_encoding="utf-8")
    shop.wait_for(shop.letters, "the letter is there")
    [(letter, body)] = shop.letters()
    assert (letter["x-unlost-death-reason"], letter["x-unlost-parks"]) == ("newer-version", 1)
    assert body == b'[["a"], {}, {}]'
    assert shop.runs() == {}


def test_a_worker_refuses_to_start_on_a_topology_that_is_missing(shop: Bench) -> None:
    """It says what is missing and what to run, and exits with status 2."""
    (shop.folder / "topology.yaml").write_text(
        json.dumps({"name": "t", "queues": {"t.work": None, "t.gone": None}})
    )
    worker = shop.start(wait=False)
    assert worker.wait(30) == 2
    assert "queue 't.gone'" in shop.log()
    assert "unlost topology apply" in shop.log()
    assert "Traceback" not in shop.log()
