"""The live progress of a chaos run on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from unlost.chaos.runner import OnProgress
from unlost.chaos.runner import Progress as Step


@contextmanager
def progress(console: Console) -> Iterator[OnProgress]:
    """Show a bar as long as the block; yields what to tell each step to."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[faults]} faults"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        row = bar.add_task("starting workers", total=None, faults=0)

        def show(step: Step) -> None:
            bar.update(
                row,
                description=step.phase,
                completed=step.published,
                total=step.messages,
                faults=step.faults,
            )

        yield show
