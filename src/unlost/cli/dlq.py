"""``unlost dlq``: dead letters. A thin face on :mod:`unlost.deadletter`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from unlost.broker.management import Management, management_url_of, vhost_of
from unlost.cli import dlq_show as show
from unlost.cli.dlq_app import application
from unlost.cli.errors import Exit, reports_errors
from unlost.core.ports import Ledger
from unlost.deadletter import DeadLetters, Pace, Redrive, Report, Selection, exposition, redrive_samples
from unlost.deadletter.archives import Place, is_table, name_of
from unlost.deadletter.desk import OnProgress
from unlost.deadletter.edit import Edit
from unlost.deadletter.group import DEFAULT
from unlost.deadletter.guard import refuse_counting_looks
from unlost.errors import ConfigurationError

#: What ``list`` takes for a queue of letters when no name is given.
SUFFIXES = (".dlq", ".unroutable", ".parked")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType[timedelta]):
    """``90s``, ``15m``, ``2h`` or ``7d``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the duration."""
        if isinstance(value, timedelta):
            return value
        text = str(value)
        try:
            return timedelta(seconds=float(text[:-1]) * _UNITS[text[-1]])
        except (KeyError, ValueError, IndexError):
            self.fail(f"{value!r} is no duration such as 90s, 15m, 2h or 7d", param, ctx)


class ArchivePlace(click.Path):
    """A file, or the URL of a database."""

    name = "file or URL"

    def __init__(self, *, exists: bool = False) -> None:
        super().__init__(exists=exists, dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, or the URL as it is."""
        return value if is_table(value) else super().convert(value, param, ctx)


_broker = click.option(
    "--broker",
    envvar=["UNLOST_BROKER_URL", "CELERY_BROKER_URL"],
    show_envvar=True,
    required=True,
    metavar="URL",
    help="AMQP URL of the broker, with the vhost.",
)
_management = click.option(
    "--management",
    "management_url",
    envvar="UNLOST_MANAGEMENT_URL",
    show_envvar=True,
    metavar="URL",
    help="URL of the management API. Default: port 15672 of the broker's host.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_yes = click.option("--yes", is_flag=True, help="Do it. Without, only say what would be done.")
_store = click.option(
    "--store", envvar="UNLOST_STORE", show_envvar=True, metavar="URL", help="The ledger: shows what is done."
)
_folder = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=lambda: Path(click.get_app_dir("unlost")),
    show_default="the user's application folder",
    help="Where journals and the audit log are kept.",
)
_looks = click.option(
    "--count-looks", is_flag=True, help="Look even where a look counts against the letters' delivery limit."
)


def _selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose letters; the command receives ``selection``."""

    @wraps(command)
    @reports_errors
    def chosen(
        group: tuple[str, ...],
        ids: tuple[str, ...],
        task: tuple[str, ...],
        reason_is: tuple[str, ...],
        older_than: timedelta | None,
        younger_than: timedelta | None,
        where: str | None,
        by: str,
        **rest: Any,
    ) -> Any:
        return command(
            selection=Selection(
                groups=frozenset(group),
                ids=frozenset(ids),
                tasks=frozenset(task),
                reasons=frozenset(reason_is),
                older_than=older_than,
                younger_than=younger_than,
                where=where,
                by=tuple(name.strip() for name in by.split(",")),
            ),
            **rest,
        )

    for option in (
        click.option("--where", metavar="JMESPATH", help="Those for which this is true."),
        click.option("--younger-than", type=Duration(), help="Those that died at most so long ago."),
        click.option("--older-than", type=Duration(), help="Those that died at least so long ago."),
        click.option(
            "--died-of", "reason_is", multiple=True, metavar="REASON", help="Those with this reason."
        ),
        click.option("--task", multiple=True, help="Those of this task."),
        click.option("--id", "ids", multiple=True, help="Those with this id."),
        click.option("--group", multiple=True, help="Those of this group, as `show` names it."),
        click.option("--by", default=",".join(DEFAULT), show_default=True, help="What makes a group."),
    ):
        chosen = option(chosen)
    return chosen


@click.group()
def dlq() -> None:
    """See dead letters, understand them, and send them back."""


@dlq.command("list")
@_broker
@_management
@click.option("--queue", "names", multiple=True, help="Only these; else all that hold letters by their name.")
@_json
@reports_errors
def list_command(broker: str, management_url: str | None, names: tuple[str, ...], as_json: bool) -> None:
    """List the queues of letters and how many each has. Reads counts only, no letter."""
    with Management(management_url or management_url_of(broker), vhost_of(broker)) as management:
        found = [
            {"queue": each.declared.name, "letters": each.messages, "held": each.unacknowledged}
            for each in management.queues()
            if (each.declared.name in names if names else each.declared.name.endswith(SUFFIXES))
        ]
    missing = sorted(set(names) - {str(each["queue"]) for each in found})
    if missing:
        raise ConfigurationError(f"no queue {', '.join(missing)} in vhost {vhost_of(broker)!r}")
    show.queues(found, as_json=as_json)
    unknown = any(each["letters"] is None for each in found)
    raise SystemExit(
        Exit.UNKNOWN if unknown else Exit.FOUND if any(e["letters"] for e in found) else Exit.FINE
    )


@dlq.command("metrics")
@_broker
@_management
@click.option("--queue", "names", multiple=True, help="Only these; else all that hold letters by their name.")
@_folder
@_looks
@reports_errors
def metrics_command(
    broker: str, management_url: str | None, names: tuple[str, ...], folder: Path, count_looks: bool
) -> None:
    """Print figures worth an alert as Prometheus reads them, for a scheduled job and a textfile collector.

    Letters by reason, loops and the age of the oldest, for which the letters are looked at; and what
    redrives have done by the audit log.
    """
    desk = DeadLetters(broker, folder=folder)
    with Management(management_url or management_url_of(broker), vhost_of(broker)) as management:
        queues = names or tuple(
            each.declared.name
            for each in management.queues()
            if each.declared.name.endswith(SUFFIXES) and each.messages
        )
        for queue in () if count_looks else queues:
            refuse_counting_looks(management, queue)
    now = datetime.now(UTC)
    samples = [sample for queue in queues for sample in desk.figures(queue).samples(now)]
    click.echo(exposition([*samples, *redrive_samples(desk.history())]), nl=False)


@dlq.command("show")
@click.argument("queue")
@click.argument("ident", required=False)
@_broker
@_management
@_selecting
@click.option("--letters", is_flag=True, help="Single letters instead of groups.")
@click.option("--app", metavar="MODULE:APP", help="The Celery app: its secrets are hidden.")
@click.option("--redact", multiple=True, metavar="FIELD", help="Hide this field of payloads, too.")
@_looks
@_json
@reports_errors
def show_command(
    queue: str,
    ident: str | None,
    broker: str,
    management_url: str | None,
    selection: Selection,
    letters: bool,
    app: str | None,
    redact: tuple[str, ...],
    count_looks: bool,
    as_json: bool,
) -> None:
    """Show the letters of QUEUE in groups; with IDENT, a task id, everything about its letters.

    QUEUE may be the URL of a database that letters were archived in.


    Nothing is taken out of the queue. While it is read, nobody else gets letters from it.
    """
    _check_looks(broker, management_url, queue, count_looks)
    redactor = application(app).redactor(redact)
    desk = DeadLetters(broker, folder=Path())
    if ident:
        chosen = Selection(ids=frozenset({ident}))
        found = show.full(desk.letters(queue, chosen), redactor, as_json=as_json)
    elif letters:
        found = show.lines(desk.letters(queue, selection), redactor, as_json=as_json)
    else:
        found = show.groups(desk.groups(queue, selection=selection, redactor=redactor), as_json=as_json)
    raise SystemExit(Exit.FOUND if found else Exit.FINE)


@dlq.command("redrive")
@click.argument("queue")
@_broker
@_management
@_store
@_selecting
@click.option("--to", metavar="QUEUE", help="To this queue instead of the one each letter died in.")
@click.option("--canary", type=click.IntRange(min=0), default=10, show_default=True)
@click.option("--watch", type=Duration(), default="30s", show_default=True, help="Patience with the canary.")
@click.option("--rate", type=float, help="Letters a second after the canary; as fast as it goes without.")
@click.option("--window", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--max-failures", type=click.FloatRange(0, 1), default=0.1, show_default=True)
@click.option("--blind", is_flag=True, help="Do not watch what comes of them: no canary, no automatic stop.")
@click.option("--max-redrives", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--run-again", is_flag=True, help="Run also what is expired or past the store's retention.")
@click.option(
    "--trust", is_flag=True, help="Sign and send also what has no good signature: you vouch for it."
)
@click.option("--limit", type=click.IntRange(min=1), help="Send no more than so many.")
@click.option("--edit", "edits", multiple=True, metavar="FIELD=JSON", help="Set this argument; needs --app.")
@click.option("--app", metavar="MODULE:APP", help="The Celery app: validates edits, knows tasks and keys.")
@click.option("--journal", type=click.Path(path_type=Path, dir_okay=False), help="The journal's file.")
@_folder
@_looks
@_yes
@_json
@reports_errors
def redrive_command(
    queue: str,
    broker: str,
    management_url: str | None,
    store: str | None,
    selection: Selection,
    to: str | None,
    canary: int,
    watch: timedelta,
    rate: float | None,
    window: int,
    max_failures: float,
    blind: bool,
    max_redrives: int,
    run_again: bool,
    trust: bool,
    limit: int | None,
    edits: tuple[str, ...],
    app: str | None,
    journal: Path | None,
    folder: Path,
    count_looks: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Send the letters of QUEUE, or of an archive's database URL, back to the queues they died in.

    A dry run unless --yes. First a canary goes out, and only if it does well, the rest. The same command
    goes on where a killed one ended.
    """
    _check_looks(broker, management_url, queue, count_looks)
    tasks = application(app)
    plan = Redrive(
        selection=selection,
        to=to,
        max_redrives=max_redrives,
        run_again=run_again,
        edit=Edit.parse(edits, tasks.models) if edits else None,
        tasks=tasks.names,
        seal=tasks.seal,
        trust=trust,
    )
    pace = Pace(canary=canary, rate=rate, window=window, max_failures=max_failures, watch=watch)
    desk = DeadLetters(broker, folder=folder, rows=_ledger(store), key_of=tasks.key_of)
    if not yes:
        _end(desk.preview(queue, plan), "would be sent back", as_json=as_json, dry=True)
    with _progress(quiet=as_json) as on_progress:
        report = desk.redrive(
            queue, plan, pace=pace, blind=blind, most=limit, journal=journal, on_progress=on_progress
        )
    _end(report, "sent back", as_json=as_json)


@dlq.command("park")
@click.argument("queue")
@click.argument("to")
@click.option("--reason", required=True, help="Why; kept on the letters and in the audit log.")
@_broker
@_management
@_selecting
@_folder
@_looks
@_yes
@_json
@reports_errors
def park_command(
    queue: str,
    to: str,
    reason: str,
    broker: str,
    management_url: str | None,
    selection: Selection,
    folder: Path,
    count_looks: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Move letters from QUEUE to the queue, or the archive's database URL, TO. A dry run unless --yes."""
    _check_looks(broker, management_url, queue, count_looks)
    desk = DeadLetters(broker, folder=folder)
    name = name_of(to) if is_table(to) else to
    if not yes:
        _end(_selected(desk, queue, selection), f"would be parked in {name}", as_json=as_json, dry=True)
    with _progress(quiet=as_json) as on_progress:
        report = desk.park(queue, to, reason, selection=selection, on_progress=on_progress)
    _end(report, f"parked in {name}", as_json=as_json)


@dlq.command("discard")
@click.argument("queue")
@click.argument("archive", type=ArchivePlace())
@click.option("--reason", required=True, help="Why; kept in the archive and in the audit log.")
@_broker
@_management
@_selecting
@_folder
@_looks
@_yes
@_json
@reports_errors
def discard_command(
    queue: str,
    archive: Place,
    reason: str,
    broker: str,
    management_url: str | None,
    selection: Selection,
    folder: Path,
    count_looks: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Take letters out of QUEUE into ARCHIVE; `import` brings them back. A dry run unless --yes.

    ARCHIVE is a file, or the URL of a database (SQLite, PostgreSQL, MariaDB) in which a table is kept.
    """
    _check_looks(broker, management_url, queue, count_looks)
    desk = DeadLetters(broker, folder=folder)
    if not yes:
        _end(_selected(desk, queue, selection), f"would go to {name_of(archive)}", as_json=as_json, dry=True)
    with _progress(quiet=as_json) as on_progress:
        report = desk.discard(queue, archive, reason, selection=selection, on_progress=on_progress)
    _end(report, f"discarded to {name_of(archive)}", as_json=as_json)


@dlq.command("export")
@click.argument("queue")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_broker
@_management
@_selecting
@_looks
@_json
@reports_errors
def export_command(
    queue: str,
    file: Path,
    broker: str,
    management_url: str | None,
    selection: Selection,
    count_looks: bool,
    as_json: bool,
) -> None:
    """Copy letters of QUEUE into FILE, JSON lines, and leave them where they are."""
    _check_looks(broker, management_url, queue, count_looks)
    count = DeadLetters(broker, folder=Path()).export(queue, file, selection)
    click.echo(json.dumps({"exported": count}) if as_json else f"{count} letters written to {file}.")


@dlq.command("import")
@click.argument("archive", type=ArchivePlace(exists=True))
@click.option("--to", metavar="QUEUE", help="To this queue instead of the one each letter was in.")
@_broker
@_selecting
@_folder
@_yes
@_json
@reports_errors
def import_command(
    archive: Place,
    to: str | None,
    broker: str,
    selection: Selection,
    folder: Path,
    yes: bool,
    as_json: bool,
) -> None:
    """Put letters that were exported, discarded or parked in ARCHIVE back into their queues.

    A dry run unless --yes. ARCHIVE is a file, or the URL of a database, where what is put back is marked.
    """
    desk = DeadLetters(broker, folder=folder)
    if not yes:
        _end(_selected(desk, archive, selection), "would be put back", as_json=as_json, dry=True)
    with _progress(quiet=as_json) as on_progress:
        report = desk.restore(archive, to=to, selection=selection, on_progress=on_progress)
    _end(report, "put back", as_json=as_json)


def _check_looks(broker: str, management_url: str | None, queue: str, count_looks: bool) -> None:
    if count_looks or is_table(queue):
        return
    with Management(management_url or management_url_of(broker), vhost_of(broker)) as management:
        refuse_counting_looks(management, queue)


def _ledger(store: str | None) -> Ledger | None:
    if store is None:
        return None
    from unlost.idempotency.open import open_store

    return open_store(store)


def _selected(desk: DeadLetters, queue: Place, selection: Selection) -> Report:
    return Report(sent=sum(1 for _ in desk.letters(queue, selection)))


@contextmanager
def _progress(*, quiet: bool) -> Iterator[OnProgress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[back]} died again"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    quiet = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        row = bar.add_task("letters", total=None, back=0)
        yield lambda report: bar.update(row, completed=report.seen, total=report.total, back=report.came_back)


def _end(report: Report, what: str, *, as_json: bool, dry: bool = False) -> None:
    show.report(report, what, as_json=as_json, dry=dry, at=datetime.now(UTC))
    if report.undecided or report.unknown:
        raise SystemExit(Exit.UNKNOWN)
    if dry:
        raise SystemExit(Exit.FOUND if report.sent or report.kept else Exit.FINE)
    raise SystemExit(Exit.FINE if report.is_clean else Exit.FOUND)
