"""``unlost demo``: workers are killed under load, and the history is judged."""

from __future__ import annotations

import shutil
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import click
from rich.console import Console

from unlost.chaos.demo import Demo
from unlost.chaos.report import exit_status, explain, table
from unlost.chaos.runner import Result
from unlost.cli.errors import reports_errors
from unlost.cli.progress import progress
from unlost.config import environment
from unlost.errors import HarnessError
from unlost.testing.brokers import Broker, start_broker


@click.command()
@click.option("--plain", is_flag=True, help="The same on plain Celery defaults, without unlost.")
@click.option("--orders", type=click.IntRange(min=1), default=2000, show_default=True)
@click.option("--rate", type=float, default=40.0, show_default=True, help="Orders a second.")
@click.option("--kill-every", type=float, default=1.0, show_default=True, help="Mean seconds between kills.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the kills.")
@click.option("--keep", is_flag=True, help="Keep history and logs also when all went well.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@reports_errors
def demo(
    plain: bool, orders: int, rate: float, kill_every: float, seed: int, keep: bool, as_json: bool
) -> None:
    """Kill workers and the broker under load, drain, and judge what became of every order.

    Exit status 0: nothing lost, nothing twice, and workers were killed while tasks ran.
    """
    environ = environment()
    console = Console(quiet=as_json)
    what = Demo(
        plain=plain,
        orders=orders,
        rate=rate,
        kill_every=timedelta(seconds=kill_every),
        seed=seed,
        environ=environ,
    )
    with start_broker(environ=environ) as broker, broker.fresh_vhost() as vhost:
        folder = Path(tempfile.mkdtemp(prefix="unlost-demo-"))
        console.print(_opening(what, broker))
        try:
            with progress(console) as on_progress:
                result = what.run(broker, vhost, folder, on_progress)
        except HarnessError as exc:
            raise type(exc)(f"{exc} (history and logs are kept in {folder})") from exc
    status = exit_status(result.figures)
    _report(result, console, "Plain Celery" if plain else "unlost")
    if keep or status != 0:
        console.print(f"History and logs are kept in {folder}")
    else:
        shutil.rmtree(folder)
    click.echo(result.figures.to_json_line())
    sys.exit(status)


def _opening(what: Demo, broker: Broker) -> str:
    version = ".".join(map(str, broker.version))
    restarts = (
        "and restarting the broker once" if "restart" in broker.can else "(its broker is not ours to kill)"
    )
    return f"RabbitMQ {version} ({broker.provider}): {what.orders} orders, killing workers {restarts}."


def _report(result: Result, console: Console, title: str) -> None:
    console.print(table(result.figures, title))
    for line in explain(result.judgement):
        console.print(line, markup=False, highlight=False)
