"""``unlost idempotency``: what the store says of messages, keys and steps; ending a lease; forgetting."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from unlost import config
from unlost.cli.errors import Exit, reports_errors
from unlost.core.ports import Ledger
from unlost.core.settlement import Row, State
from unlost.core.uniqueness import is_unique_record, occupant_of
from unlost.errors import ConfigurationError
from unlost.idempotency.holder import is_gone
from unlost.idempotency.open import open_store

_Command = Callable[..., None]


def _store(command: _Command) -> _Command:
    return click.option(
        "--store",
        envvar="UNLOST_STORE",
        show_envvar=True,
        metavar="URL",
        help="Of the store. Default: that of the settings.",
    )(command)


_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_yes = click.option("--yes", is_flag=True, help="Do it. Without, only say what would be done.")


@click.group()
def idempotency() -> None:
    """Look into the store of messages and keys, end leases, forget what ended long ago."""


@idempotency.command("show")
@click.argument("text")
@_store
@click.option("--most", type=click.IntRange(min=1), default=100, show_default=True, help="How many rows.")
@_json
@reports_errors
def show(text: str, store: str | None, most: int, as_json: bool) -> None:
    """Show what is known under names that contain TEXT, a task id for example.

    There are messages, keys (key:...), steps (step:...) and records of unique tasks (unique:...).

    Exit status 3 if there are none: absence does not prove that nothing ran.
    """
    rows = _open(store).find(text, most)
    if as_json:
        click.echo(json.dumps({"rows": [_as_json(name, row) for name, row in rows]}))
    elif rows:
        Console().print(_table(rows))
    else:
        click.echo(f"No row's name contains {text!r}; that does not prove that it never ran.")
    raise SystemExit(Exit.FINE if rows else Exit.UNKNOWN)


@idempotency.command("release")
@click.argument("name")
@_store
@_yes
@_json
@reports_errors
def release(name: str, store: str | None, yes: bool, as_json: bool) -> None:
    """End the lease of NAME (as `show` prints it), so that the next delivery runs at once.

    The holder is fenced only when somebody else takes over: be sure that it is gone. What ended is left as it
    is. A dry run unless --yes; exits with 1 if there is a lease to end.
    """
    ledger = _open(store)
    row = dict(ledger.find(name, 1000)).get(name)
    if row is None:
        raise ConfigurationError(f"no row is named {name!r}: see `unlost idempotency show`")
    held = row.state is State.LEASED and row.holder is not None
    done = held and yes and ledger.release(row.holder or "")
    if as_json:
        click.echo(json.dumps({"released": done, "row": _as_json(name, row)}))
    elif not held:
        click.echo(f"{name} is {row.state} and nobody holds it: nothing to release.")
    else:
        click.echo(_what_of(row, done=done))
    raise SystemExit(Exit.FOUND if held and not done else Exit.FINE)


@idempotency.command("purge")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Remove what ended longer ago. Default, and least: the retention of the settings.",
)
@_store
@_yes
@_json
@reports_errors
def purge(older_than: float | None, store: str | None, yes: bool, as_json: bool) -> None:
    """Forget what ended (done, dead, cancelled) longer ago than the retention, in batches that block nobody.

    A dry run unless --yes; exits with 1 if there is something to remove.
    """
    retention = config.load().retention
    age = retention if older_than is None else timedelta(days=older_than)
    if age < retention:
        raise ConfigurationError(
            f"--older-than {older_than:g} is less than the retention, {retention / timedelta(days=1):g} days "
            "(UNLOST_RETENTION): workers take the absence of a younger row for a message that never ran, and "
            "would run it twice"
        )
    ledger = _open(store)
    rows = ledger.purge(age) if yes else ledger.count_purgeable(age)
    if as_json:
        click.echo(json.dumps({"purged": yes, "rows": rows}))
    else:
        click.echo(f"{rows} rows removed." if yes else f"{rows} rows to remove; run again with --yes.")
    raise SystemExit(Exit.FOUND if rows and not yes else Exit.FINE)


def _open(url: str | None) -> Ledger:
    settings = config.load({"store": url} if url else None)
    _refuse_missing_file(settings.store)
    ledger = open_store(settings.store, lease=settings.lease)
    ledger.create_schema()
    return ledger


def _refuse_missing_file(url: str) -> None:
    """A mistyped path must not become an empty store, in which there is nothing to be found."""
    scheme, _, path = url.partition(":///")
    file = Path(path.partition("?")[0])
    if scheme.startswith("sqlite") and path and not path.startswith(":") and not file.exists():
        raise ConfigurationError(
            f"there is no store {url}: no file {file.absolute()} (--store, UNLOST_STORE)"
        )


def _what_of(row: Row, *, done: bool) -> str:
    alive = "is gone" if is_gone(row.holder or "") else "may be alive"
    what = "Released from" if done else "Would be released from"
    return f"{what} {row.holder}, which {alive}." + ("" if done else " Run again with --yes.")


def _as_json(name: str, row: Row) -> dict[str, Any]:
    failure = asdict(row.failure) if row.failure else None
    return {"name": name, **row._asdict(), "generation": list(row.generation), "failure": failure}


def _table(rows: list[tuple[str, Row]]) -> Table:
    whole = partial(Column, overflow="fold")
    counted = ("state", "attempt", "redrives", "crashes", "lost", "started")
    table = Table(whole("name"), *counted, whole("holder or reason"))
    for name, row in rows:
        started = datetime.fromtimestamp(row.started_ms / 1000, UTC).isoformat(timespec="seconds")
        counts = (row.generation.attempt, row.generation.redrives, row.crashes, row.lost)
        occupant = occupant_of(row) if is_unique_record(name) else None
        holder = str(occupant.message) if occupant else row.holder
        why = holder or (row.failure.reason if row.failure else "")
        # As they are: rich would take an id in brackets for a style.
        table.add_row(escape(name), row.state, *map(str, counts), started, escape(why))
    return table
