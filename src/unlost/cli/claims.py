"""``unlost claims``: remove payloads that no message needs any more."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import click

from unlost.claims.check import sweepable
from unlost.claims.stores import open_claims
from unlost.cli.errors import Exit, reports_errors
from unlost.idempotency.open import open_store


@click.group()
def claims() -> None:
    """Remove stored payloads that no message needs any more."""


@claims.command("sweep")
@click.option(
    "--claim-store",
    envvar="UNLOST_CLAIM_STORE",
    show_envvar=True,
    required=True,
    metavar="URL",
    help="Where the payloads are.",
)
@click.option(
    "--store",
    envvar="UNLOST_STORE",
    show_envvar=True,
    required=True,
    metavar="URL",
    help="URL of the ledger, which says what became of each message.",
)
@click.option("--yes", is_flag=True, help="Do it. Without, only count.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@reports_errors
def sweep_command(claim_store: str, store: str, yes: bool, as_json: bool) -> None:
    """Delete payloads that are past their retention, but for those of messages that are under way or dead.

    A dry run unless --yes; exits with 1 if there is something to delete.
    """
    ledger = open_store(store)
    ledger.create_schema()
    payloads = open_claims(claim_store)
    keys = [key for key, _message in sweepable(payloads, ledger.read, datetime.now(UTC))]
    if yes:
        for key in keys:
            payloads.delete(key)
    if as_json:
        click.echo(json.dumps({"deleted": yes, "keys": keys}))
    else:
        click.echo(
            f"{len(keys)} payloads deleted." if yes else f"{len(keys)} to delete; run again with --yes."
        )
    raise SystemExit(Exit.FOUND if keys and not yes else Exit.FINE)
