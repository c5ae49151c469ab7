"""An archive table keeps letters as they are in every database, and gives each back until it was sent."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from tests.support.letters import a_letter, as_letter, numbered
from unlost.core.outcome import Outcome
from unlost.deadletter.letter import DeadLetter
from unlost.deadletter.table import PAGE, LetterTable
from unlost.errors import ConfigurationError, DeadLetterError

NOTES = {"reason": "later, \0 perhaps", "by": "tester@host"}

ODD = DeadLetter(
    queue="q" * 300,
    body=bytes(range(256)),
    headers={
        "at": datetime(2026, 1, 1, tzinfo=UTC),
        "price": Decimal("1.5"),
        "text": "\0 \ud800 é",
        "raw": b"\xff",
    },
    properties={"message_id": "a\0b" * 200},
)


def test_letters_come_back_as_they_were_put(database_url: str) -> None:
    """Bodies of all bytes, texts that no database takes, names that are too long: nothing is changed."""
    letters = [as_letter(a_letter("m1")), ODD, replace(ODD, body=b"\x00" * 2_000_000)]
    with LetterTable(database_url, create=True) as table:
        assert [each.outcome for each in table.append(letters, NOTES)] == [Outcome.OK] * 3
    with LetterTable(database_url) as table:
        assert table.ready == 3
        assert [held.letter for held in table.letters()] == letters


def test_what_was_sent_back_is_not_seen_again(tmp_path: Path) -> None:
    """It stays in the table, marked; the others are given out again, in their order, page after page."""
    url = f"sqlite:///{tmp_path}/letters.sqlite"
    with LetterTable(url, create=True) as table:
        table.append([as_letter(each) for each in numbered(2 * PAGE + 1)], NOTES)
        held = list(table.letters())
        table.ack(held[1:-1])
        table.ack([])
    with LetterTable(url) as table:
        assert [each.letter.id for each in table.letters()] == ["m0", f"m{2 * PAGE}"]
        assert [each.letter.id for each in table.letters(1)] == ["m0"]
        taking = table.letters()
        next(taking)
        table.append([as_letter(a_letter("late"))], NOTES)
        assert len(list(taking)) == 1


def test_a_letter_that_the_database_does_not_take_fails_alone(tmp_path: Path) -> None:
    """One that is too large is told apart from its batch, with the reason; the others are stored."""
    url = f"sqlite:///{tmp_path}/letters.sqlite"
    with LetterTable(url, create=True) as table:

        @event.listens_for(table._database.engine, "connect")
        def _small(connection: Any, _record: Any) -> None:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)

        table._database.engine.dispose()
        large = replace(as_letter(a_letter("large")), body=b"x" * 200_000)
        stored = table.append([as_letter(a_letter("m1")), large, as_letter(a_letter("m2"))], NOTES)
        assert [each.outcome for each in stored] == [Outcome.OK, Outcome.FAILED, Outcome.OK]
        assert "too large" in str(stored[1].error)
        assert [held.letter.id for held in table.letters()] == ["m1", "m2"]


def test_a_database_without_an_archive_says_so_and_shows_no_password(tmp_path: Path) -> None:
    """Looking makes no table; an address that is none is refused without its password."""
    with pytest.raises(DeadLetterError, match="has no archive"):
        LetterTable(f"sqlite:///{tmp_path}/empty.sqlite")
    with pytest.raises(ConfigurationError) as told:
        LetterTable("oracle://me:hidden@host/letters")
    assert "hidden" not in str(told.value)
