"""``unlost breaker``: dry runs change nothing, and exit statuses tell scripts what is going on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from unlost.cli import main


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Return the URL of a new store."""
    return f"sqlite:///{tmp_path / 'store.sqlite'}"


def run(store: str, *arguments: str) -> Result:
    """Run a command on the store."""
    return CliRunner().invoke(main, ["breaker", *arguments, "--store", store], catch_exceptions=False)


def test_a_hold_is_a_dry_run_without_yes(store: str) -> None:
    """It says what would be done, and nothing is held."""
    said = run(store, "hold", "bank")
    assert (said.exit_code, "would be held for 3600 s" in said.output) == (0, True)
    assert run(store, "list").exit_code == 0


def test_what_is_held_is_listed_with_its_reason_and_time(store: str) -> None:
    """The status is 1 while a breaker pauses its queues."""
    assert run(store, "hold", "bank", "--for", "60", "--reason", "moving house", "--yes").exit_code == 0
    said = run(store, "list", "--json")
    assert said.exit_code == 1
    found = json.loads(said.output)["bank"]
    assert (found["state"], found["reason"]) == ("held", "moving house")
    assert 50 < found["seconds"] <= 60
    assert "moving house" in run(store, "list").output


def test_a_release_needs_a_name_that_is_known(store: str) -> None:
    """A mistyped name is a usage error; a known one is due for a probe at once."""
    assert run(store, "release", "bnak", "--yes").exit_code == 2
    run(store, "hold", "bank", "--yes")
    assert json.loads(run(store, "release", "bank", "--yes", "--json").output)["done"]
    assert json.loads(run(store, "list", "--json").output)["bank"]["seconds"] <= 0


def test_a_store_that_keeps_no_breakers_is_a_usage_error() -> None:
    """The error names what is needed."""
    said = run("none://", "list")
    assert said.exit_code == 2
    assert "need a store" in said.output
    said = run("memory://", "hold", "bank", "--yes")
    assert said.exit_code == 2
    assert "each process's own" in said.output


def test_a_store_that_does_not_answer_is_named() -> None:
    """Nothing was changed, and the error says where nobody was."""
    for sure in ([], ["--yes"]):
        said = run("redis://:secret@127.0.0.1:1/0", "hold", "bank", *sure)
        assert said.exit_code == 3
        assert "127.0.0.1:1" in said.output
        assert "secret" not in said.output
