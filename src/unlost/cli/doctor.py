"""``unlost doctor``: does this build fit its broker, its store, and the messages that wait for it?"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from celery import Celery

from unlost.broker.connection import open_connection
from unlost.broker.management import Management, management_url_of, vhost_of
from unlost.broker.verify import Look, Verdict, verify
from unlost.cli.errors import Exit, reports_errors
from unlost.core.ids import MessageId
from unlost.deadletter.guard import refuse_counting_looks
from unlost.deadletter.hold import Hold
from unlost.errors import AccessRefused, BrokerError, ConfigurationError, DeadLetterError, StoreError
from unlost.tasks.fitness import misfit
from unlost.tasks.runtime import Runtime, runtime_of

#: Others get nothing of a queue while it is looked at.
LONGEST_LOOK = timedelta(seconds=30)

PATIENCE = timedelta(seconds=5)


@click.command("doctor")
@click.option("--app", "place", required=True, metavar="MODULE:APP", help="The Celery app of this build.")
@click.option("--against", "queues", multiple=True, metavar="QUEUE", help="Look at what waits in it.")
@click.option(
    "--management",
    "management_url",
    envvar="UNLOST_MANAGEMENT_URL",
    show_envvar=True,
    metavar="URL",
    help="URL of the management API. Default: port 15672 of the broker's host.",
)
@click.option("--most", type=click.IntRange(min=1), default=10_000, show_default=True, help="Of one queue.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@reports_errors
def doctor(place: str, queues: tuple[str, ...], management_url: str | None, most: int, as_json: bool) -> None:
    """Check the app's configuration, its broker, its topology and its store; change nothing.

    With --against, before a deploy: read what waits in a live queue and say what this build cannot handle
    (tasks it does not know, payloads it refuses, newer versions). Nothing is taken out of the queue, but
    workers get none of it while it is read, which takes seconds.

    Exits with 1 if something is wrong, with 3 if something could not be told.
    """
    app = _import(place)
    runtime = runtime_of(app)
    url = app.connection_for_write().as_uri(include_password=True)
    looks = [Look("configuration", Verdict.OK, f"{place} has {len(runtime.topology.queues)} work queues")]
    looks.append(_told("broker", lambda: _broker(app)))
    looks.append(_told("store", lambda: _store(runtime)))
    with Management(management_url or management_url_of(url), vhost_of(url)) as management:
        try:
            looks += verify(runtime.topology, management)
        except (BrokerError, AccessRefused) as exc:
            looks.append(Look("topology", Verdict.UNKNOWN, str(exc)))
        for queue in queues:
            looks.append(_told(f"messages in {queue}", partial(_messages, app, management, queue, most)))
    _print(looks, as_json=as_json)
    verdicts = {each.verdict for each in looks}
    if Verdict.FOUND in verdicts:
        raise SystemExit(Exit.FOUND)
    raise SystemExit(Exit.UNKNOWN if Verdict.UNKNOWN in verdicts else Exit.FINE)


def _import(place: str) -> Celery:
    module, _, attribute = place.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        app: Any = getattr(import_module(module), attribute or "app")
        app.loader.import_default_modules()
    except (ImportError, AttributeError) as exc:
        raise ConfigurationError(f"no Celery app at {place!r} ({exc}): give it as module:attribute") from exc
    if not isinstance(app, Celery):
        raise ConfigurationError(f"{place} is a {type(app).__name__} and no Celery app")
    return app


def _told(what: str, look: Callable[[], Look]) -> Look:
    try:
        return look()
    except (BrokerError, DeadLetterError, StoreError) as exc:
        return Look(what, Verdict.UNKNOWN, str(exc))


def _broker(app: Celery) -> Look:
    connection = open_connection(app.connection_for_write(), connect_timeout=PATIENCE, patience=PATIENCE)
    try:
        version = connection.server_properties.get("version", "of unknown version")
    finally:
        connection.close()
    return Look("broker", Verdict.OK, f"RabbitMQ {version} answers")


def _store(runtime: Runtime) -> Look:
    runtime.ledger.read(MessageId("unlost.doctor", "nobody"))
    old = runtime.ledger.count_purgeable(runtime.settings.retention)
    more = f"; {old} rows are past the retention: `unlost idempotency purge`" if old else ""
    return Look("store", Verdict.OK, f"{runtime.ledger!r} answers{more}")


def _messages(app: Celery, management: Management, queue: str, most: int) -> Look:
    refuse_counting_looks(management, queue)
    seen, found = 0, Counter[tuple[str, str, str]]()
    with Hold(app.connection_for_write(), queue, longest=LONGEST_LOOK) as hold:
        for held in hold.letters(most):
            letter = held.letter
            seen += 1
            problem = misfit(app, letter.headers, letter.properties, letter.payload)
            if problem is not None:
                found[(problem[0], letter.task, problem[1])] += 1
        more = "" if seen >= hold.ready and not hold.is_cut else f" of about {hold.ready}"
    what = f"messages in {queue}"
    if not found:
        return Look(what, Verdict.OK, f"this build can handle all {seen}{more} that were looked at")
    return Look(what, Verdict.FOUND, "; ".join(_lines(found.most_common(20))))


def _lines(found: Iterable[tuple[tuple[str, str, str], int]]) -> Iterable[str]:
    for (reason, task, text), count in found:
        yield f"{count} of {task or 'no task'}: {reason} ({text})"


_COLOURS = {Verdict.OK: "green", Verdict.FOUND: "red", Verdict.UNKNOWN: "yellow"}


def _print(looks: list[Look], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"looks": [asdict(each) for each in looks]}))
        return
    for each in looks:
        click.secho(f"{each.verdict:8}", fg=_COLOURS.get(each.verdict, "bright_black"), nl=False)
        click.echo(f"{each.what}: {each.says}")
