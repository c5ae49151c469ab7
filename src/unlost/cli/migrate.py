"""``unlost topology migrate``: replace a queue or an exchange by one that is built differently."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from kombu import Connection
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from unlost.broker.drain import Patience, read_facts
from unlost.broker.journal import Journal, create_journal, open_journal, read_journal
from unlost.broker.journal import Progress as Journey
from unlost.broker.management import Management, management_url_of, vhost_of
from unlost.broker.migrate import Event, Migration, Result, State
from unlost.cli.errors import Exit, reports_errors
from unlost.errors import BrokerUnavailable, ConfigurationError, ConfirmUnknown
from unlost.topology.migration import Plan, Step
from unlost.topology.migration_plan import ExchangeChange, plan_exchange, plan_queue, successor_name
from unlost.topology.objects import Value
from unlost.topology.replacement import QueueChange


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was asked for on the command line."""

    name: str
    to: str | None
    type: str | None
    arguments: dict[str, Value]
    keep_name: bool
    exchange: bool
    retire: bool
    without_consumers: bool
    broker: str
    management: str
    journal: Path
    finish: bool
    back: bool
    accept_counts: bool
    wait: timedelta
    window: int
    as_json: bool


def _arguments(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name.startswith("x-"):
            raise click.BadParameter(f"{each!r} is not of the form x-name=value")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


@click.command("migrate")
@click.argument("name")
@click.option("--to", metavar="NAME", help="The new name. Default: NAME.v2 (of NAME.v2: NAME.v3).")
@click.option("--type", metavar="TYPE", help="Default: quorum for a queue, topic for an exchange.")
@click.option("--argument", "arguments", multiple=True, callback=_arguments, metavar="X-NAME=VALUE")
@click.option("--keep-name", is_flag=True, help="Rebuild the queue under its name, in two hops.")
@click.option("--exchange", is_flag=True, help="NAME is an exchange, not a queue.")
@click.option(
    "--retire", is_flag=True, help="In the end unbind the old name, once its delayed messages came."
)
@click.option("--without-consumers", is_flag=True, help="Do not wait until workers consume the new queue.")
@click.option(
    "--broker",
    envvar=["UNLOST_BROKER_URL", "CELERY_BROKER_URL"],
    show_envvar=True,
    required=True,
    metavar="URL",
    help="AMQP URL of the broker and vhost.",
)
@click.option(
    "--management",
    envvar="UNLOST_MANAGEMENT_URL",
    show_envvar=True,
    metavar="URL",
    help="URL of the management API. Default: port 15672 of the broker's host.",
)
@click.option(
    "--journal",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where each step is written down. Default: migrate-NAME.journal in this folder. Keep it.",
)
@click.option("--finish", is_flag=True, help="Take also the last step, after which there is no way back.")
@click.option("--back", is_flag=True, help="Undo what has been done.")
@click.option(
    "--accept-counts", is_flag=True, help="Go on although the totals say that messages are missing."
)
@click.option("--wait", type=float, default=600.0, show_default=True, help="Seconds to wait for others.")
@click.option("--window", type=click.IntRange(1, 10_000), default=256, show_default=True)
@click.option("--yes", is_flag=True, help="Do it. Without, only show the steps.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@reports_errors
def migrate_command(
    name: str,
    management: str | None,
    journal: Path | None,
    wait: float,
    yes: bool,
    broker: str,
    **given: Any,
) -> None:
    """Replace a queue by another one, and move all that is inside, while applications go on.

    A dry run unless --yes: shows every step, with 1 if there are any left. A run that was interrupted goes
    on with its journal, by the same command. It stops before the last step unless --finish, and until then
    --back undoes it. Exit status 0: the steps asked for are done; 1: it waits for something, run it again;
    3: the broker does not answer, run it again.
    """
    options = Options(
        name=name,
        broker=broker,
        management=management or management_url_of(broker),
        journal=journal or Path(f"migrate-{name.replace('/', '_')}.journal"),
        wait=timedelta(seconds=wait),
        **given,
    )
    with Management(options.management, vhost_of(broker)) as api:
        if not yes:
            _dry_run(options, api)
        else:
            _run(options, api)


def _dry_run(options: Options, api: Management) -> None:
    known = _known(options, api)
    plan = known.plan if known else _plan(options, api)
    journey = known or Journey(plan=plan)
    _show_steps(journey, options)
    raise SystemExit(Exit.FINE if journey.finished else Exit.FOUND)


def _run(options: Options, api: Management) -> None:
    try:
        with _journal(options, api) as journal, _progress(options) as on_event:
            result = _migrate(options, api, journal, on_event)
    except (BrokerUnavailable, ConfirmUnknown) as exc:
        click.echo(f"error: {' '.join(str(exc).split())}. Run it again to go on.", err=True)
        raise SystemExit(Exit.UNKNOWN) from exc
    _report(result, journal.progress, options)
    raise SystemExit(Exit.FOUND if result.state is State.WAITING else Exit.FINE)


def _migrate(
    options: Options, api: Management, journal: Journal, on_event: Callable[[Event], None]
) -> Result:
    patience = Patience(wait=options.wait, window=options.window)
    migration = Migration(
        api,
        Connection(options.broker),
        journal,
        patience=patience,
        accept_counts=options.accept_counts,
        on_event=on_event,
    )
    with closing(migration):
        return migration.go_back() if options.back else migration.go_on(finish=options.finish)


@contextmanager
def _journal(options: Options, api: Management) -> Iterator[Journal]:
    """Go on with the journal if there is one, else plan and begin one."""
    if _known(options, api):
        with open_journal(options.journal, api.vhost) as journal:
            yield journal
    elif options.back:
        raise ConfigurationError(f"there is no journal {options.journal}, so there is nothing to take back")
    else:
        with create_journal(options.journal, _plan(options, api), api.vhost) as journal:
            yield journal


def _known(options: Options, api: Management) -> Journey | None:
    """Return how far the migration of the journal has come, if there is one.

    Raises:
        ConfigurationError: It is another queue's, or another change of the same one.
    """
    if not options.journal.exists():
        return None
    journey = read_journal(options.journal, api.vhost)
    plan = journey.plan
    if plan.source != options.name or (options.to and plan.target != options.to):
        raise ConfigurationError(
            f"the journal {options.journal} is of the migration of {plan.source!r} to {plan.target!r}; "
            "name another file with --journal"
        )
    return journey


def _plan(options: Options, api: Management) -> Plan:
    target = options.to or (options.name if options.keep_name else successor_name(options.name))
    facts = read_facts(api)
    if options.exchange:
        change = ExchangeChange(source=options.name, target=target, type=options.type or "topic")
        return plan_exchange(change, facts)
    return plan_queue(
        QueueChange(
            source=options.name,
            target=target,
            type=options.type or "quorum",
            arguments=options.arguments,
            await_consumers=not options.without_consumers,
            retire=options.retire,
        ),
        facts,
    )


@contextmanager
def _progress(options: Options) -> Iterator[Callable[[Event], None]]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=options.as_json) as bar:
        row = bar.add_task("", total=None)

        def show(event: Event) -> None:
            journey = event.progress
            moved = f", {journey.moved} moved" if journey.moved else ""
            left = f", {event.left} left" if event.left else ""
            bar.update(
                row,
                description=f"{event.step}{moved}{left}",
                completed=journey.done,
                total=len(journey.steps),
            )
            if event.done and not options.as_json:
                console.print(f"[green]done[/] {event.step}", highlight=False)

        yield show


def _show_steps(journey: Journey, options: Options) -> None:
    if options.as_json:
        click.echo(json.dumps({**_as_json(journey), "state": "planned"}))
        return
    for index, step in enumerate(journey.steps):
        is_last = journey.back is None and index == journey.plan.last
        if is_last:
            click.secho("  --finish:", fg="yellow")
        mark, colour = ("done", "green") if index < journey.done else ("    ", "red" if is_last else "yellow")
        click.secho(f"  {mark} {index + 1:2} {step}", fg=colour)
        is_final = journey.back is None and index >= journey.plan.last
        click.echo(f"          {step.condition}; {'no way back' if is_final else _taken_back_by(step)}")
    for note in journey.plan.notes:
        click.echo(f"  note: {note}")
    left = len(journey.steps) - journey.done
    click.echo(f"{left} steps to take; run again with --yes." if left else "Nothing is left to do.")


def _taken_back_by(step: Step) -> str:
    inverse = step.inverse()
    return f"taken back by: {inverse}" if inverse else "changes nothing"


def _report(result: Result, journey: Journey, options: Options) -> None:
    if options.as_json:
        click.echo(
            json.dumps(
                {
                    **_as_json(journey),
                    "state": result.state,
                    "reason": result.reason,
                    "conserved": result.conserved and result.conserved.name.lower(),
                }
            )
        )
        return
    click.echo(f"{result.state}{': ' if result.reason else ''}{result.reason}")
    again = f", {journey.redelivered} of them delivered before" if journey.redelivered else ""
    click.echo(f"{journey.moved} messages moved{again}.")
    if result.conserved is not None:
        click.echo(f"All messages are still there: {result.conserved}.")
    if result.state is State.READY:
        click.echo("Run it again with --finish, or with --back to undo it.")


def _as_json(journey: Journey) -> dict[str, Any]:
    steps = [
        {"step": str(step), "condition": step.condition, "done": index < journey.done}
        for index, step in enumerate(journey.steps)
    ]
    return {
        "source": journey.plan.source,
        "target": journey.plan.target,
        "steps": steps,
        "last": journey.plan.last if journey.back is None else None,
        "notes": list(journey.plan.notes),
        "moved": journey.moved,
        "redelivered": journey.redelivered,
    }
