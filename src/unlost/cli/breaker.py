"""``unlost breaker``: which queues pause and why; stop what depends on something, and let it go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta

import click
from rich.console import Console
from rich.table import Table

from unlost import config
from unlost.cli.errors import Exit, reports_errors
from unlost.core.breaker import Circuit
from unlost.core.ports import Throttle
from unlost.errors import ConfigurationError
from unlost.throttle.open import open_throttle

_Command = Callable[..., None]


def _store(command: _Command) -> _Command:
    return click.option(
        "--store",
        envvar="UNLOST_STORE",
        show_envvar=True,
        metavar="URL",
        help="Of the store that the workers use. Default: that of the settings.",
    )(command)


_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_yes = click.option("--yes", is_flag=True, help="Do it. Without, only say what would be done.")


@click.group()
def breaker() -> None:
    """See which dependencies are down, pause what depends on one, and let it go on."""


@breaker.command("list")
@_store
@_json
@reports_errors
def show(store: str | None, as_json: bool) -> None:
    """List the breakers; exits with 1 if one of them pauses its queues."""
    found = _open(store).circuits()
    if as_json:
        click.echo(
            json.dumps(
                {name: {**asdict(circuit), "seconds": left} for name, (circuit, left) in found.items()}
            )
        )
    elif found:
        Console().print(_table(found))
    else:
        click.echo("No breaker has counted anything yet.")
    raise SystemExit(Exit.FINE if all(circuit.flows for circuit, _ in found.values()) else Exit.FOUND)


@breaker.command("hold")
@click.argument("name")
@click.option(
    "--for",
    "seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=3600,
    show_default=True,
    metavar="SECONDS",
    help="How long; then one message is tried.",
)
@click.option("--reason", default="held by an operator", show_default=True, help="For those who look.")
@_store
@_yes
@_json
@reports_errors
def hold(name: str, seconds: float, reason: str, store: str | None, yes: bool, as_json: bool) -> None:
    """Pause all queues whose tasks depend on NAME: nothing is consumed from them, no attempt is counted.

    A dry run unless --yes.
    """
    opened = _open(store)
    # A dry run, too, shall say that nobody is there.
    opened.circuit(name)
    if yes:
        opened.hold(name, lasts=timedelta(seconds=seconds), reason=reason)
    _say(opened, name, as_json, f"{name} {'is' if yes else 'would be'} held for {seconds:g} s", yes=yes)


@breaker.command("release")
@click.argument("name")
@_store
@_yes
@_json
@reports_errors
def release(name: str, store: str | None, yes: bool, as_json: bool) -> None:
    """Have one message of NAME tried at once, and, if it succeeds, let all flow. A dry run unless --yes."""
    opened = _open(store)
    if name not in opened.circuits():
        raise ConfigurationError(f"no breaker is named {name!r}: see `unlost breaker list`")
    if yes:
        opened.release(name)
    _say(opened, name, as_json, f"{name} {'is' if yes else 'would be'} tried with one message", yes=yes)


def _say(store: Throttle, name: str, as_json: bool, text: str, *, yes: bool) -> None:
    if as_json:
        click.echo(json.dumps({"done": yes, "name": name, "circuit": asdict(store.circuit(name))}))
    else:
        click.echo(text + ("." if yes else "; run again with --yes."))
    raise SystemExit(Exit.FINE)


def _open(url: str | None) -> Throttle:
    chosen = config.load({"store": url} if url else None).store
    if chosen.partition(":")[0] == "memory":
        raise ConfigurationError(
            "memory:// is each process's own: what the workers keep there, nobody else can see"
        )
    return open_throttle(chosen)


def _table(found: dict[str, tuple[Circuit, float]]) -> Table:
    table = Table("name", "state", "next try", "succeeded", "failed", "trips", "reason")
    for name, (circuit, left) in found.items():
        soon = "" if circuit.flows else f"in {max(0.0, left):.0f} s"
        counts = (circuit.ok + circuit.ok_before, circuit.failed + circuit.failed_before, circuit.trips)
        table.add_row(name, circuit.state, soon, *map(str, counts), circuit.reason)
    return table
