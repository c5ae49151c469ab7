"""Figures of letters and redrives, as Prometheus reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.support.letters import FAILED_AT, a_letter, as_letter
from unlost.core.clock import from_epoch_ms
from unlost.deadletter import exposition, figures_of, redrive_samples
from unlost.deadletter.audit import AuditLog
from unlost.deadletter.metrics import Sample


def value_of(samples: Iterator[Sample], name: str, **labels: str) -> float:
    """Return the one sample of this name with these labels."""
    (found,) = [value for each, has, value in samples if each == name and labels.items() <= has.items()]
    return found


def test_letters_are_counted_by_reason_with_the_age_of_the_oldest() -> None:
    """Reasons are counted apart, and the age is that of the first that died."""
    poison: dict[str, Any] = {"reason": "poison", "failed_at_ms": FAILED_AT + 5000}
    letters = [as_letter(a_letter("m1")), as_letter(a_letter("m2", failure=poison))]
    figures = figures_of("q.dlq", letters)
    now = from_epoch_ms(FAILED_AT) + timedelta(seconds=60)
    assert value_of(figures.samples(now), "unlost_dead_letters", reason="poison") == 1
    assert value_of(figures.samples(now), "unlost_dead_letters", reason="permanent") == 1
    assert value_of(figures.samples(now), "unlost_dead_letter_oldest_age_seconds") == 60


def test_outcomes_of_redrives_are_added_up_by_queue() -> None:
    """What the audit log says of the ends of redrives is a counter for each queue and outcome."""
    lines: list[dict[str, Any]] = [
        {"action": "redrive", "queue": "q.dlq"},
        {"action": "redrive-ended", "queue": "q.dlq", "sent": 3, "kept": {"done": 2, "limit": 1}},
        {"action": "redrive-ended", "queue": "q.dlq", "sent": 4, "came_back": 2, "stopped": "canary"},
        {"action": "park-ended", "queue": "q.dlq", "sent": 9},
    ]
    assert value_of(redrive_samples(lines), "unlost_redriven_letters_total", outcome="sent") == 7
    assert value_of(redrive_samples(lines), "unlost_redriven_letters_total", outcome="kept") == 3
    assert value_of(redrive_samples(lines), "unlost_redriven_letters_total", outcome="came_back") == 2
    assert value_of(redrive_samples(lines), "unlost_redrives_stopped_total", queue="q.dlq") == 1


def test_samples_of_one_name_stand_together_under_their_type() -> None:
    """Names are announced once, counters as counters, and values are escaped."""
    gauge: Sample = ("unlost_dead_letters", {"queue": "q", "reason": 'a"b\\c\nd'}, 2)
    counter: Sample = ("unlost_redrives_stopped_total", {"queue": "q"}, 1)
    assert exposition([gauge, counter, gauge]).splitlines() == [
        "# HELP unlost_dead_letters Letters in a queue, by the reason of their death.",
        "# TYPE unlost_dead_letters gauge",
        'unlost_dead_letters{queue="q",reason="a\\"b\\\\c\\nd"} 2',
        'unlost_dead_letters{queue="q",reason="a\\"b\\\\c\\nd"} 2',
        "# HELP unlost_redrives_stopped_total Redrives that stopped by themselves.",
        "# TYPE unlost_redrives_stopped_total counter",
        'unlost_redrives_stopped_total{queue="q"} 1',
    ]


def test_the_audit_log_is_read_without_a_torn_line(tmp_path: Path) -> None:
    """What a crash has torn at the end is left out; a log that is not there is empty."""
    log = AuditLog(tmp_path / "audit.jsonl", "tester")
    assert list(log.read()) == []
    log.write("redrive-ended", queue="q", sent=1)
    with log.path.open("a") as file:
        file.write(json.dumps({"action": "redrive-ended"})[:9])
    assert [line["action"] for line in log.read()] == ["redrive-ended"]
