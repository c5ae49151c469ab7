"""``unlost chaos``: run an application under faults, and judge histories."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from unlost.chaos import checker, evidence, nemesis
from unlost.chaos.checker import Judgement
from unlost.chaos.failure import explain_failure
from unlost.chaos.history import History, load
from unlost.chaos.kit import Chaos, Outcome
from unlost.chaos.nemesis import KillBroker, KillWorkers, Nemesis
from unlost.chaos.picture import page
from unlost.chaos.places import Places
from unlost.chaos.report import Figures, exit_status, explain, figures, table
from unlost.chaos.runner import rules
from unlost.chaos.workload import Workload, from_fields, make
from unlost.cli.errors import Exit, reports_errors
from unlost.cli.progress import progress
from unlost.config import environment
from unlost.errors import ConfigurationError, HarnessError

#: Fields of nemeses that take several values, joined by ``+``.
_LISTS = frozenset({"targets", "links", "faults", "points"})

#: Fields of every workload that have an option of their own.
_OWN_OPTIONS = {"rate": "--rate", "duration": "--minutes", "threads": "--threads"}


class _Positive(click.FloatRange):
    """More than zero, and not without end."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no amount.", param, ctx)
        return number


_POSITIVE = _Positive()
_COUNT = click.IntRange(min=1)


@click.group()
def chaos() -> None:
    """Injure an application under load and judge what came of it."""


@chaos.command()
@click.option("--app", required=True, help="Import path of the Celery app, module:attribute.")
@click.option("--workload", required=True, help="Import path of the workload, module:Class.")
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="A field of the workload.")
@click.option("--minutes", type=_POSITIVE, default=1.0, show_default=True, help="How long to publish.")
@click.option("--rate", type=_POSITIVE, default=50.0, show_default=True, help="Messages a second.")
@click.option("--threads", type=_COUNT, default=1, show_default=True, help="How many publish at once.")
@click.option("--workers", type=_COUNT, default=2, show_default=True, help="Worker processes.")
@click.option("--concurrency", type=_COUNT, default=2, show_default=True, help="Pool processes of each.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the nemeses.")
@click.option(
    "--nemesis",
    "nemeses",
    multiple=True,
    metavar="NAME[:FIELD=VALUE,...]",
    help="Such as KillWorkers:every=2 or LinkFault:times=4,links=worker+publisher. Usual: KillWorkers, "
    "and KillBroker once.",
)
@click.option("--nodes", type=click.Choice(["1", "3"]), default="1", help="Of the broker.")
@click.option("--store", help="postgresql, mariadb, redis, or the URL of an empty database. Usual: SQLite.")
@click.option("--image", metavar="NAME", help="Run each worker in a container of this image; it has the app.")
@click.option("--env", "variables", multiple=True, metavar="NAME=VALUE", help="A variable of the workers.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with a picture of the run.")
@click.option("--record", type=click.Path(path_type=Path), help="Append the run to a record (JSON lines).")
@click.option("--keep", is_flag=True, help="Keep history and logs also when all went well.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@reports_errors
def run(
    app: str,
    workload: str,
    options: tuple[str, ...],
    minutes: float,
    rate: float,
    threads: int,
    workers: int,
    concurrency: int,
    seed: int,
    nemeses: tuple[str, ...],
    nodes: str,
    store: str | None,
    image: str | None,
    variables: tuple[str, ...],
    html: Path | None,
    record: Path | None,
    keep: bool,
    as_json: bool,
) -> None:
    """Publish a workload for some minutes while nemeses injure the system, drain, and judge.

    Exit status 0: valid; 1: an anomaly; 2: the run could not be made; 3: it proves nothing.
    """
    sys.path.insert(0, str(Path.cwd()))
    console = Console(quiet=as_json)
    environ = environment()
    chosen = [_nemesis(each) for each in nemeses] or [
        KillWorkers(every=timedelta(seconds=3)),
        KillBroker(times=1),
    ]
    if not all(app.partition(":")):
        raise ConfigurationError(f"--app: {app!r} is not of the form module:attribute")
    published = _workload(workload, options, {"rate": rate, "duration": minutes * 60, "threads": threads})
    given = _pairs(variables, "--env", read=str)
    _must_be_writable(html, "--html")
    _must_be_writable(record, "--record")
    folder = Path(tempfile.mkdtemp(prefix="unlost-chaos-"))
    began = time.monotonic()
    with Places(environ) as places, progress(console) as on_progress, _kept_if_anything(folder):
        outcome = Chaos(
            places,
            folder,
            environ=environ,
            seed=seed,
            nodes=int(nodes),
            store=store,
            repeat=_command(),
            on_progress=on_progress,
        ).run(
            app=app,
            workload=published,
            nemeses=chosen,
            workers=workers,
            concurrency=concurrency,
            environment=given,
            image=image,
        )
    judgement = outcome.judge(*rules(chosen)[:-1])
    shown = figures(judgement, outcome.history)
    status = exit_status(shown)
    if html:
        html.write_text(page(outcome.history, judgement, shown, f"{app} under {workload}, seed {seed}"))
    if record:
        _recorded(outcome, shown, seed, time.monotonic() - began).append_to(record)
    _tell(console, outcome, judgement, shown)
    if keep or status != Exit.FINE:
        console.print(f"History and logs are kept in {folder}")
    else:
        shutil.rmtree(folder)
    click.echo(shown.to_json_line())
    sys.exit(status)


@chaos.command()
@click.argument("path", metavar="HISTORY", type=click.Path(exists=True, path_type=Path))
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with a picture of the run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@reports_errors
def check(path: Path, html: Path | None, as_json: bool) -> None:
    """Judge a history: a file of JSON lines, or a folder of them.

    Exit status 0: valid; 1: an anomaly; 3: it proves nothing.
    """
    console = Console(quiet=as_json)
    history = load(path)
    _must_be_writable(html, "--html")
    judgement = checker.check(history, _rules_of(history))
    shown = figures(judgement, history)
    if html:
        html.write_text(page(history, judgement, shown, str(path)))
    console.print(table(shown, str(path)))
    for line in explain(judgement):
        console.print(line, markup=False, highlight=False)
    click.echo(shown.to_json_line())
    sys.exit(exit_status(shown))


@chaos.command()
@click.argument("path", metavar="RECORD", type=click.Path(exists=True, path_type=Path))
@reports_errors
def total(path: Path) -> None:
    """Add up the runs of a record that ``chaos run --record`` wrote.

    Exit status 0: all of them are valid; 1: one is not; 3: one proves nothing.
    """
    summed = evidence.total(evidence.read(path))
    click.echo(json.dumps(summed))
    sys.exit({"valid": Exit.FINE, "invalid": Exit.FOUND}.get(summed["verdict"], Exit.UNKNOWN))


def _rules_of(history: History) -> tuple[checker.Checker, ...]:
    """Return the promise, and that whatever struck struck a running task."""
    struck = frozenset(op.f for op in checker.faults(history))
    return (*rules()[:-1], checker.Active(struck or checker.Active().nemeses))


def _nemesis(text: str) -> Nemesis:
    name, _, fields = text.partition(":")
    kind = getattr(nemesis, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Nemesis) and kind is not Nemesis):
        known = [each for each in nemesis.__all__ if hasattr(getattr(nemesis, each), "name")]
        raise ConfigurationError(f"--nemesis: there is no {name!r}; there are {', '.join(known)}")
    values = _pairs(fields.split(",") if fields else [], f"--nemesis {name}")
    values = {
        field: [value] if field in _LISTS and isinstance(value, str) else value
        for field, value in values.items()
    }
    try:
        made: Nemesis = from_fields(kind, values)
        made.schedule("", timedelta(seconds=1))  # refuses times that make no schedule
    except ValueError as exc:
        raise ConfigurationError(f"--nemesis {text}: {name} {exc}") from exc
    return made


def _workload(path: str, options: tuple[str, ...], load: Mapping[str, Any]) -> Workload:
    fields = _pairs(options, "--option")
    for name, own in _OWN_OPTIONS.items():
        if name in fields:
            raise ConfigurationError(f"--option: {name} has an option of its own, {own}")
    try:
        return make(path, {**fields, **load})
    except HarnessError as exc:
        raise ConfigurationError(f"--workload: {exc}") from exc


def _pairs(
    given: tuple[str, ...] | list[str], option: str, *, read: Callable[[str], Any] | None = None
) -> dict[str, Any]:
    pairs = [each.partition("=") for each in given]
    for name, equals, _ in pairs:
        if not equals:
            raise ConfigurationError(f"{option}: {name!r} is not of the form name=value")
    return {name: (read or _value)(text) for name, _, text in pairs}


def _must_be_writable(path: Path | None, option: str) -> None:
    """Make its folder; what a run came to must not be lost because nobody looked."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(f"{option}: {path} cannot be written: {exc.strerror}") from exc
    if path.is_dir():
        raise ConfigurationError(f"{option}: {path} is a directory")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigurationError(f"{option}: {path} cannot be written")


@contextmanager
def _kept_if_anything(folder: Path) -> Iterator[None]:
    """Say where the folder of a run that could not be made is, unless nothing was written there."""
    try:
        yield
    except HarnessError as exc:
        if any(each.is_file() for each in folder.rglob("*")):
            raise type(exc)(f"{exc} (history and logs are kept in {folder})") from exc
        shutil.rmtree(folder)
        raise


def _value(text: str) -> Any:
    if "+" in text:
        return text.split("+")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _command() -> str:
    return shlex.join(["unlost", *sys.argv[1:]])


def _recorded(outcome: Outcome, shown: Figures, seed: int, seconds: float) -> evidence.Evidence:
    return evidence.Evidence(
        figures=shown,
        injuries=outcome.injuries,
        seeds=[seed],
        broker=outcome.broker,
        seconds=seconds,
        command=outcome.repeat,
    )


def _tell(console: Console, outcome: Outcome, judgement: Judgement, shown: Figures) -> None:
    console.print(table(shown, "chaos"))
    told = outcome.summary() if shown.verdict == "valid" else explain_failure(outcome, judgement)
    console.print(told, markup=False, highlight=False)
