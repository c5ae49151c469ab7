"""``unlost idempotency`` on a real store: it shows, ends leases, forgets; a dry run without --yes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from unlost.cli import main
from unlost.core.uniqueness import Occupant, holder_of, unique_id
from unlost.idempotency.sql import SqlStore
from unlost.testing.conformance import MESSAGE, OTHER, acquire, granted, read


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqlStore]:
    """A store with a leased and a done message."""
    monkeypatch.setenv("UNLOST_STORE", f"sqlite:///{tmp_path}/store.sqlite")
    monkeypatch.setenv("COLUMNS", "250")
    opened = SqlStore(f"sqlite:///{tmp_path}/store.sqlite")
    opened.create_schema()
    granted(opened, holder="me")
    opened.complete(OTHER, granted(opened, OTHER), "5")
    yield opened
    opened.close()


def run(*arguments: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(main, ["idempotency", *arguments])


def test_rows_are_shown(store: SqlStore) -> None:
    """A part of the name is enough; as JSON all of the row is there."""
    table = run("show", "shop.charge").output
    assert "leased" in table
    assert str(MESSAGE) in table
    shown = run("show", "[n]", "--json")
    assert shown.exit_code == 0
    assert [(row["name"], row["state"], row["result"]) for row in json.loads(shown.output)["rows"]] == [
        (str(OTHER), "done", "5")
    ]


def test_a_unique_task_is_shown_with_its_message(store: SqlStore) -> None:
    """Whoever wonders why nothing is published sees which message is in the way."""
    record, note = unique_id("shop.pack", 5), Occupant(OTHER, 60).note()
    row = granted(store, record, holder="publisher")
    store.hand_over(record, row, to=holder_of(OTHER), lease=timedelta(seconds=60), note=note)

    assert str(OTHER) in run("show", "unique:shop.pack").output


@pytest.mark.parametrize("command", [["show", "x"], ["release", "x"], ["purge"]])
def test_a_mistyped_path_is_no_empty_store(tmp_path: Path, command: list[str]) -> None:
    """It is refused, and no file is made of it."""
    refused = run(*command, "--store", f"sqlite:///{tmp_path}/stroe.sqlite")
    assert refused.exit_code == 2
    assert f"no file {tmp_path}/stroe.sqlite" in refused.output
    assert not list(tmp_path.iterdir())


def test_absence_is_no_proof(store: SqlStore) -> None:
    """What is not there cannot be told."""
    assert run("show", "nowhere").exit_code == 3


def test_a_release_is_a_dry_run_first(store: SqlStore) -> None:
    """Only with --yes the lease ends, and then the next delivery runs."""
    dry = run("release", str(MESSAGE))
    assert (dry.exit_code, read(store).holder) == (1, "me")

    done = run("release", str(MESSAGE), "--yes", "--json")
    assert (done.exit_code, json.loads(done.output)["released"]) == (0, True)
    assert read(store).holder is None
    assert acquire(store)


def test_what_is_done_is_not_released(store: SqlStore) -> None:
    """Done is final: there is no lease to end."""
    before = read(store, OTHER)

    assert run("release", str(OTHER), "--yes").exit_code == 0
    assert read(store, OTHER) == before


def test_an_unknown_name_is_a_usage_error(store: SqlStore) -> None:
    """A name that is not there is said."""
    assert run("release", "nobody", "--yes").exit_code == 2


def test_a_purge_is_a_dry_run_first(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only with --yes rows go, and only ended ones."""
    monkeypatch.setenv("UNLOST_RETENTION", "0.001")
    dry = run("purge", "--json")
    assert (dry.exit_code, json.loads(dry.output)) == (1, {"purged": False, "rows": 1})

    assert run("purge", "--yes").exit_code == 0
    assert store.read(OTHER) is None
    assert read(store).holder == "me"


def test_a_purge_within_the_retention_is_refused(store: SqlStore) -> None:
    """Workers rely on the memory: forgetting sooner would let messages run twice."""
    refused = run("purge", "--older-than", "1", "--yes")
    assert refused.exit_code == 2
    assert "UNLOST_RETENTION" in refused.output
    assert read(store, OTHER)
