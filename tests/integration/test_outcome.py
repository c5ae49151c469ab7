"""Where a message stands, whatever becomes of the result backend; and cancelling one for good."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from celery import Celery

from tests.integration.test_worker_edges import ONE_AT_A_TIME, publish, reasons, work_off
from tests.support.workers import Bench, bench
from unlost.testing.brokers import Vhost

pytestmark = pytest.mark.one_broker

MODULE = "tests.support.with_results"


@contextmanager
def backend(kind: str) -> Iterator[str]:
    """Yield the URL of a result backend that is down, slow or wrong."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Nonsense, bind_and_activate=False) as server:
        server.daemon_threads = True
        server.server_bind()
        if kind != "down":
            # Connections are accepted by the kernel, and nobody answers.
            server.server_activate()
        if kind == "wrong":
            threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
        if kind == "wrong":
            server.shutdown()


class Nonsense(socketserver.BaseRequestHandler):
    """Answers whatever it is asked in another protocol."""

    def handle(self) -> None:
        """Answer until the client has enough."""
        with suppress(OSError):
            while self.request.recv(65536):
                self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.fixture
def shop(vhost: Vhost, tmp_path: Path) -> Iterator[Bench]:
    """The misbehaving app on a fresh vhost, with a short lease."""
    with bench(vhost, tmp_path, UNLOST_LEASE="4") as made:
        yield made


def outcome(shop: Bench, task: str, task_id: str) -> dict[str, object]:
    """Ask in a client process where a message stands."""
    code = (
        f"import json; it = m.app.tasks[{task!r}].outcome({task_id!r}); "
        "print(json.dumps([it.state, it.result, it.reason, it.attempt, it.has_ended]))"
    )
    names = ("state", "result", "reason", "attempt", "has_ended")
    return dict(zip(names, json.loads(shop.call(code).splitlines()[-1]), strict=True))


@pytest.mark.parametrize("kind", ["down", "slow", "wrong"])
def test_a_sick_result_backend_changes_no_settlement(vhost: Vhost, tmp_path: Path, kind: str) -> None:
    """One run, one effect, one letter; the store tells result and reason."""
    with backend(kind) as url, bench(vhost, tmp_path, CELERY_RESULT_BACKEND=url) as shop:
        shop.module = MODULE
        worker = shop.start(ONE_AT_A_TIME)
        publish(shop, "t.keeps", "kept", id="good")
        publish(shop, "t.keeps_failure", "lost", id="bad")
        shop.wait_for(lambda: len(shop.letters()) == 1, "the failure is a letter")
        work_off(shop)
        assert reasons(shop) == ["permanent"]
        assert (shop.runs()["kept"], shop.runs()["lost"]) == (1, 1)
        assert shop.effects() == {"kept": 1}
        assert worker.poll() is None
        good = outcome(shop, "t.keeps", "good")
        assert (good["state"], good["result"], good["has_ended"]) == ("done", "kept-done", True)
        bad = outcome(shop, "t.keeps_failure", "bad")
        assert (bad["state"], bad["reason"], bad["has_ended"]) == ("dead", "permanent", True)


def test_the_store_tells_what_runs_and_what_waits(shop: Bench) -> None:
    """A running task is ``leased``, one between two attempts ``waiting``, one nobody has met ``unknown``."""
    shop.start()
    publish(shop, "t.waits", "busy", id="running")
    publish(shop, "t.retries_late", "later", id="retrying")
    shop.wait_for(lambda: shop.states() == {"leased": 1, "waiting": 1}, "one runs and one waits")
    assert outcome(shop, "t.waits", "running")["state"] == "leased"
    assert outcome(shop, "t.retries_late", "retrying") == {
        "state": "waiting",
        "result": None,
        "reason": None,
        "attempt": 2,
        "has_ended": False,
    }
    assert outcome(shop, "t.effect", "no-such-id")["state"] == "unknown"
    shop.call("m.note('release')")


def test_a_replaced_tasks_outcome_is_its_replacements(shop: Bench) -> None:
    """A task that put itself in its own place is as far as its last replacement."""
    shop.start(ONE_AT_A_TIME)
    publish(shop, "t.replaces_itself", "r", id="r")
    shop.wait_for(lambda: shop.runs()["r"] == 2, "both ran")
    work_off(shop)
    assert outcome(shop, "t.replaces_itself", "r")["result"] == "second"


def test_what_is_cancelled_before_any_worker_saw_it_never_runs(shop: Bench) -> None:
    """``cancel`` needs no worker: the first that meets the message acks it unrun."""
    sent = "m.effect.apply_async(('unwanted',), task_id='unwanted')"
    assert shop.call(f"{sent}; print(m.effect.cancel('unwanted'))") == "True"
    shop.start(ONE_AT_A_TIME)
    work_off(shop)
    assert shop.runs()["unwanted"] == 0
    assert outcome(shop, "t.effect", "unwanted")["state"] == "cancelled"
    assert shop.letters() == []


def test_a_cancel_loses_to_done(shop: Bench) -> None:
    """What is done stays so, and the caller is told."""
    shop.start(ONE_AT_A_TIME)
    publish(shop, "t.effect", "fast", id="fast")
    work_off(shop)
    assert shop.call("print(m.effect.cancel('fast'))") == "False"
    assert outcome(shop, "t.effect", "fast")["state"] == "done"


@pytest.mark.parametrize("by", ["the app", "a plain client"])
def test_a_revoke_survives_the_workers_that_heard_it(shop: Bench, by: str) -> None:
    """A worker that starts after the revoke, and before the message comes, does not run it."""
    if by == "the app":
        shop.call("m.app.control.revoke('unwanted')")
    else:
        worker = shop.start(ONE_AT_A_TIME)
        with Celery(broker=shop.vhost.amqp_url, set_as_current=False) as app:
            app.control.revoke("unwanted", reply=True, timeout=20, limit=1)
        shop.wait_for(lambda: shop.states()["cancelled"] == 1, "it is written down")
        worker.terminate()
        worker.wait(30)
    publish(shop, "t.effect", "unwanted", id="unwanted")
    shop.start(ONE_AT_A_TIME)
    work_off(shop)
    assert shop.runs()["unwanted"] == 0
    assert outcome(shop, "t.effect", "unwanted")["state"] == "cancelled"
    assert shop.letters() == []
