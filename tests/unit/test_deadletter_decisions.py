"""What becomes of letters that say little of themselves."""

from __future__ import annotations

from datetime import UTC, datetime

from tests.support.letters import KnowsNothing
from unlost.core import headers as h
from unlost.deadletter import Redrive
from unlost.deadletter.disposition import Verdict, decide
from unlost.deadletter.letter import DeadLetter

NOW = datetime(2026, 3, 1, tzinfo=UTC)

#: As plain Celery publishes a task, and the broker dead-letters it.
PLAIN = DeadLetter(
    queue="celery.dlq",
    exchange="dlx",
    routing_key="celery",
    body=b'[[1], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]',
    headers={
        "task": "shop.charge",
        "id": "m1",
        "lang": "py",
        "retries": 2,
        "x-death": [{"queue": "celery", "reason": "rejected", "count": 1}],
    },
    properties={"content_type": "application/json", "correlation_id": "m1", "expiration": "5000"},
)


def test_a_letter_of_plain_celery_goes_back_to_where_it_died() -> None:
    """It has no header of ours: the broker says where it died, and it gets an identity on its way back."""
    facts = (PLAIN.id, PLAIN.task, PLAIN.reason, PLAIN.origin, PLAIN.attempt, PLAIN.redrives)
    assert facts == ("m1", "shop.charge", "rejected", "celery", 3, 0)
    sent = decide(PLAIN, Redrive(), KnowsNothing(), None, NOW).outgoing
    assert sent is not None
    assert (sent.exchange, sent.routing_key, sent.body) == ("", "celery", PLAIN.body)
    assert (sent.headers[h.REDRIVES], sent.headers["retries"], sent.message_id) == (1, 0, "m1.1.1")
    assert "x-death" not in sent.headers
    assert "expiration" not in sent.properties


def test_a_letter_of_plain_celery_whose_task_is_unknown_stays() -> None:
    """The application that is named does not have it: the verdict names the task."""
    decision = decide(PLAIN, Redrive(tasks={"shop.refund"}), KnowsNothing(), None, NOW)
    assert (decision.verdict, decision.why) == (Verdict.UNKNOWN_TASK, "shop.charge")
