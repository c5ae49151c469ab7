"""How errors leave the command line."""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import IntEnum
from typing import ParamSpec, TypeVar

import click

from unlost.errors import StoreUnavailable, UnlostError

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


class Exit(IntEnum):
    """Exit statuses of every command."""

    FINE = 0
    FOUND = 1  # drift, an anomaly, letters left
    USAGE = 2  # usage or configuration
    UNKNOWN = 3  # could not tell


def reports_errors(command: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
    """Turn our own errors into one line on stderr and exit status 2, or 3 when a store did not answer.

    Any other error keeps its traceback.
    """

    @functools.wraps(command)
    def reporting(*args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        try:
            return command(*args, **kwargs)
        except UnlostError as exc:
            click.echo(f"error: {' '.join(str(exc).split())}", err=True)
            raise SystemExit(Exit.UNKNOWN if isinstance(exc, StoreUnavailable) else Exit.USAGE) from exc

    return reporting
