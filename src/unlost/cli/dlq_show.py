"""How the dead-letter commands print what they found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unlost.deadletter import DeadLetter, Group, Redactor, Report
from unlost.deadletter.archive import to_json
from unlost.deadletter.desk import PARKED_BY, PARKED_REASON


def queues(found: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print queues and counts."""
    if as_json:
        click.echo(json.dumps({"queues": list(found)}))
        return
    _table(("queue", "letters", "held"), [(e["queue"], e["letters"], e["held"]) for e in found])


def groups(found: Sequence[Group], *, as_json: bool) -> int:
    """Print groups; return how many letters are in them."""
    count = sum(each.letters for each in found)
    if as_json:
        click.echo(json.dumps({"letters": count, "groups": [_group(each) for each in found]}))
        return count
    facets = list(found[0].facets) if found else []
    rows = [
        (
            each.id,
            each.letters,
            *(each.facets.get(name, "") for name in facets),
            _time(each.oldest),
            _time(each.newest),
            each.example,
        )
        for each in found
    ]
    if found:
        _table(("group", "letters", *facets, "oldest", "newest", "for example"), rows)
    click.echo(f"{count} letters in {len(found)} groups.")
    return count


def lines(letters: Iterable[DeadLetter], redactor: Redactor, *, as_json: bool) -> int:
    """Print one line for each letter, as it is read; return how many."""
    count = 0
    for letter in letters:
        count += 1
        text = redactor.text(letter, letter.exception)
        if as_json:
            click.echo(json.dumps({**_facts(letter), "exception": text}))
        else:
            click.echo(
                f"{_time(letter.failed_at)}  {letter.id}  {letter.task}  {letter.reason}  {text[:120]}"
            )
    if not as_json:
        click.echo(f"{count} letters.")
    return count


def full(letters: Iterable[DeadLetter], redactor: Redactor, *, as_json: bool) -> int:
    """Print everything about letters; return how many."""
    count = 0
    for letter in letters:
        count += 1
        document = {
            **_facts(letter),
            "exception": redactor.text(letter, letter.exception),
            "traceback": redactor.text(letter, letter.traceback),
            "payload": redactor.payload(letter),
            "bytes": len(letter.body),
            "timeline": [[moment.isoformat(), text] for moment, text in letter.timeline()],
        }
        if as_json:
            click.echo(json.dumps(document))
        else:
            _document(document)
    if not count and not as_json:
        click.echo("No such letter.")
    return count


def report(report: Report, what: str, *, as_json: bool, dry: bool, at: datetime) -> None:
    """Print what a run has done, or would do."""
    if as_json:
        document = {
            "dry_run": dry,
            "sent": report.sent,
            "acked": report.acked,
            "kept": dict(report.kept),
            "why": dict(report.why),
            "failed": dict(report.failed),
            "unknown": report.unknown,
            "came_back": report.came_back,
            "stopped": report.stopped,
            "journal": report.journal or None,
            "at": at.isoformat(),
        }
        click.echo(json.dumps(document))
        return
    click.echo(f"{report.sent} letters {what}" + ("; run again with --yes." if dry else "."))
    if report.acked:
        click.echo(f"{report.acked} were twins, or sent before: only removed.")
    for verdict, count in report.kept.most_common():
        click.echo(f"{count} stay: {verdict}.")
    for why, count in report.why.most_common(5):
        click.echo(f"  {count} of them: {why}")
    for error, count in report.failed.most_common(5):
        click.secho(f"{count} failed and stay: {error}", fg="red")
    if report.unknown:
        click.secho(f"{report.unknown} without a confirm stay; the same command sends them again.", fg="red")
    if report.came_back:
        click.secho(f"{report.came_back} died again.", fg="yellow")
    if report.stopped:
        click.secho(f"Stopped: {report.stopped}", fg="red")
    if report.journal:
        click.echo(f"Journal: {report.journal}")


def _facts(letter: DeadLetter) -> dict[str, Any]:
    facts = {
        "id": letter.id,
        "task": letter.task,
        "reason": letter.reason,
        "exception_type": letter.exception_type,
        "queue": letter.origin,
        "exchange": letter.headers.get("x-unlost-death-exchange")
        or letter.headers.get("x-first-death-exchange"),
        "routing_key": letter.headers.get("x-unlost-death-routing-key"),
        "attempt": letter.attempt,
        "crashes": letter.crashes,
        "lost": letter.lost,
        "redrives": letter.redrives,
        "loop": letter.is_loop,
        "worker": letter.worker,
        "code_version": letter.code_version,
        "correlation_id": letter.correlation_id,
        "published_at": _time(letter.published_at) or None,
        "failed_at": _time(letter.failed_at) or None,
        "fingerprint": letter.fingerprint,
        "parked": _parked(letter),
    }
    return {name: to_json(value) for name, value in facts.items()}


def _parked(letter: DeadLetter) -> str | None:
    reason = letter.headers.get(PARKED_REASON)
    return f"{reason} ({letter.headers.get(PARKED_BY)})" if reason else None


def _group(each: Group) -> dict[str, Any]:
    return {
        "id": each.id,
        **each.facets,
        "letters": each.letters,
        "loops": each.loops,
        "oldest": _time(each.oldest) or None,
        "newest": _time(each.newest) or None,
        "versions": dict(each.versions),
        "example": each.example,
        "samples": each.samples,
    }


def _document(document: Mapping[str, Any]) -> None:
    for name, value in document.items():
        if name == "timeline":
            for moment, text in value:
                click.echo(f"{moment}  {text}")
        elif name == "traceback":
            click.echo(value)
        elif value not in ("", None, False):
            click.echo(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")
    click.echo("")


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    table = Table()
    for number, name in enumerate(columns):
        # What stands first is a name to be copied: the others make room for it.
        table.add_column(name, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*(escape("?" if cell is None else str(cell)) for cell in row))
    Console().print(table)


def _time(moment: datetime | None) -> str:
    return moment.isoformat(timespec="seconds") if moment else ""
