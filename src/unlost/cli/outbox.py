"""``unlost outbox``: prepare a database, relay its messages, see and retry what could not be published."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from kombu import Connection

from unlost import config
from unlost.broker.publisher import Publisher
from unlost.claims.check import ClaimCheck
from unlost.claims.stores import open_claims
from unlost.cli.errors import Exit, reports_errors
from unlost.core import headers as h
from unlost.core.message import Outgoing
from unlost.core.signing import Seal
from unlost.database.database import Database
from unlost.outbox.relay import Options, Relay, sending
from unlost.outbox.store import OutboxStore, Row, Status
from unlost.outbox.wakeup import wakeup_for

logger = logging.getLogger(__name__)

#: Shorter than a publisher's own: what fails is in the outbox, and the lease must not end meanwhile.
PATIENCE = timedelta(seconds=10)

_DEFAULTS = Options()

_store = click.option(
    "--store",
    envvar="UNLOST_STORE",
    show_envvar=True,
    required=True,
    metavar="URL",
    help="SQLAlchemy URL of the database that holds the outbox.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_yes = click.option("--yes", is_flag=True, help="Do it. Without, only say what would be done.")


class _Seconds(click.ParamType[timedelta]):
    """A duration in seconds."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the duration."""
        if isinstance(value, timedelta):
            return value
        try:
            found = timedelta(seconds=float(value))
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        if found <= timedelta(0):
            self.fail("must be longer than zero", param, ctx)
        return found


def _duration(flag: str, default: timedelta, text: str) -> Callable[[Any], Any]:
    shown = f"{default.total_seconds():g} s"
    return click.option(flag, type=_Seconds(), default=default, show_default=shown, help=text)


@click.group()
def outbox() -> None:
    """Publish what transactions have committed; show what is left."""


@outbox.command("init")
@_store
@_yes
@_as_json
@reports_errors
def init_command(store: str, yes: bool, as_json: bool) -> None:
    """Create the outbox's tables, or bring them to this release's version.

    A dry run unless --yes; exits with 1 if there is something to do. Applications and relays of the release
    before go on working on the newer tables.
    """
    with _opened(store) as opened:
        versions = opened.create_schema() if yes else opened.missing_versions()
    if as_json:
        click.echo(json.dumps({"applied": yes, "versions": versions}))
    elif not versions:
        click.echo("The tables are up to date; nothing to change.")
    else:
        click.echo(f"{'Applied' if yes else 'To apply with --yes'}: version {', '.join(map(str, versions))}.")
    raise SystemExit(Exit.FOUND if versions and not yes else Exit.FINE)


@outbox.command("relay")
@_store
@click.option(
    "--broker",
    envvar=["UNLOST_BROKER_URL", "CELERY_BROKER_URL"],
    show_envvar=True,
    required=True,
    metavar="URL",
    help="AMQP URL of the broker; several, separated by ';', are tried in turn.",
)
@click.option(
    "--window", type=click.IntRange(min=1), default=200, show_default=True, help="Confirms in flight."
)
@click.option(
    "--batch", type=click.IntRange(min=1), default=1000, show_default=True, help="Rows of one claim."
)
@_duration("--lease", _DEFAULTS.lease, "How long claimed rows are this relay's.")
@_duration("--poll", _DEFAULTS.poll, "How often to look where nobody tells of a commit.")
@_duration("--retention", _DEFAULTS.retention, "How long delivered rows are kept.")
@click.option(
    "--claim-store",
    envvar="UNLOST_CLAIM_STORE",
    show_envvar=True,
    metavar="URL",
    help="Where large payloads go; as the workers have it. Without it they travel in their messages.",
)
@click.option(
    "--claim-above",
    type=click.IntRange(min=0),
    envvar="UNLOST_CLAIM_ABOVE",
    show_envvar=True,
    default=64 * 1024,
    show_default=True,
    help="Bytes above which a payload goes to the claim store.",
)
@_duration("--claim-retention", timedelta(days=30), "How long a payload is kept at least.")
@click.option("--once", is_flag=True, help="Publish what is there now, and end.")
@_as_json
@reports_errors
def relay_command(
    store: str,
    broker: str,
    window: int,
    claim_store: str | None,
    claim_above: int,
    claim_retention: timedelta,
    once: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Publish what is in the outbox, until SIGTERM or SIGINT.

    Any number of relays may run on one database, on any hosts. Like a worker it is a service: there is no dry
    run. With --once it exits with 1 if rows are left that could not be published.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    publisher = Publisher(
        Connection(broker), patience=PATIENCE, connect_patience=PATIENCE, confirm_timeout=PATIENCE
    )
    claims = None
    if claim_store is not None:
        claims = ClaimCheck(open_claims(claim_store), claim_above, claim_retention)
    signing = config.load().signing
    send = sending(publisher, window, _ready(claims, signing.seal() if signing is not None else None))
    stop = _stopped_by_signals()
    with _opened(store) as opened, closing(publisher):
        relay = Relay(opened, send, wakeup_for(opened.engine), Options(**options))
        opened.status()  # A database that is wrong or not prepared is an error now, not a line in a log.
        if once:
            relay.drain(stop)
        else:
            relay.run(stop)
    click.echo(json.dumps(asdict(relay.tally)) if as_json else _sentence(asdict(relay.tally)))
    raise SystemExit(Exit.FOUND if once and (relay.tally.again or relay.tally.parked) else Exit.FINE)


def _ready(claims: ClaimCheck | None, seal: Seal | None) -> Callable[[Outgoing], Outgoing]:
    """Return what makes a message of a row.

    With keys it is signed as it leaves: the time in the outbox does not age it. Without, it keeps the
    signature that it was written with, so its body must stay as it is.
    """

    def ready(message: Outgoing) -> Outgoing:
        if claims is not None:
            if seal is None and h.SIGNATURE in message.headers and len(message.raw_body) > claims.above:
                logger.warning(
                    "%s is signed and travels whole: give the relay the keys (UNLOST_SIGNING), so that a "
                    "large payload can go to the claim store",
                    message.describe(),
                )
                return message
            message = claims.check_in(message)
        return message if seal is None else seal.sign(message, datetime.now(UTC))

    return ready


@outbox.command("status")
@_store
@_duration("--max-age", timedelta(minutes=1), "Exit with 1 if a row waits for longer.")
@_as_json
@reports_errors
def status_command(store: str, max_age: timedelta, as_json: bool) -> None:
    """Show how many rows wait, are parked and are delivered, and which ones fail and why.

    Exits with 1 if a row is parked or has waited for longer than --max-age, and with 3 if the database does
    not answer.
    """
    with _opened(store) as opened:
        status, troubled = opened.status(), opened.troubled()
    late = status.oldest is not None and status.oldest > max_age
    if as_json:
        click.echo(json.dumps({**_as_dict(status), "troubled": [asdict(row) for row in troubled]}))
    else:
        click.echo(_sentence(_as_dict(status)))
        for row in troubled:
            click.echo(_line(row))
    raise SystemExit(Exit.FOUND if status.parked or late else Exit.FINE)


@outbox.command("retry")
@_store
@click.argument("ids", nargs=-1, type=int)
@click.option("--all", "everything", is_flag=True, help="All parked rows.")
@_yes
@_as_json
@reports_errors
def retry_command(store: str, ids: tuple[int, ...], everything: bool, yes: bool, as_json: bool) -> None:
    """Send parked rows, named by IDS, back to be published.

    A dry run unless --yes: lists the rows, and exits with 1 if there are any.
    """
    if bool(ids) == everything:
        raise click.UsageError("name the ids of parked rows, or give --all")
    with _opened(store) as opened:
        rows = [row for row in opened.parked() if everything or row.id in ids]
        retried = opened.retry([row.id for row in rows]) if yes else 0
    if as_json:
        click.echo(json.dumps({"retried": retried, "rows": [asdict(row) for row in rows]}))
    else:
        for row in rows:
            click.echo(_line(row))
        click.echo(f"{retried} rows sent back." if yes else f"{len(rows)} rows; run again with --yes.")
    raise SystemExit(Exit.FOUND if rows and not yes else Exit.FINE)


@contextmanager
def _opened(url: str) -> Iterator[OutboxStore]:
    database = Database(url)
    try:
        yield OutboxStore(database)
    finally:
        database.dispose()


def _stopped_by_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _as_dict(status: Status) -> dict[str, Any]:
    seconds = None if status.oldest is None else round(status.oldest.total_seconds(), 3)
    return {**asdict(status), "oldest": seconds, "pending": status.pending}


def _sentence(counts: dict[str, Any]) -> str:
    named = {"oldest": "oldest waiting (s)"}
    return ", ".join(f"{named.get(name, name)}: {'-' if n is None else n}" for name, n in counts.items())


def _line(row: Row) -> str:
    key = f" key {row.ordering_key!r}" if row.ordering_key else ""
    return f"{row.id} {row.task}[{row.message_id}]{key}, failed {row.failures} times: {row.reason}"
