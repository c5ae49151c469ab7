"""Reads what came of a run, with the application's own eyes: its letters and its effects.

Run as ``python -m unlost.chaos.reader`` when the queues are empty.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from unlost.chaos.clock import run_clock
from unlost.chaos.drain import record_effects, record_letters
from unlost.chaos.history import Recorder, fresh_file
from unlost.chaos.subject import broker_option, clock_option
from unlost.chaos.workload import make
from unlost.errors import UnlostError


@click.command()
@click.option("--app", "_app", required=True)
@click.option("--workload", "path", required=True)
@click.option("--options", default="{}")
@click.option("--history", type=click.Path(path_type=Path), required=True)
@click.option("--letters", multiple=True, help="A queue that holds letters.")
@broker_option
@clock_option
def main(
    _app: str,
    path: str,
    options: str,
    history: Path,
    letters: tuple[str, ...],
    broker: str,
    clock: int,
) -> None:
    """Record every letter and every effect."""
    try:
        workload = make(path, json.loads(options))
        with Recorder(fresh_file(history, "reader"), now_ns=run_clock(clock)) as recorder:
            record_letters(broker, letters, workload, recorder)
            record_effects(workload, recorder)
    except UnlostError as exc:
        raise click.ClickException(str(exc)) from exc


if __name__ == "__main__":
    main()
