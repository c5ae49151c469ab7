"""The application under test, inside the processes of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from celery import Celery
from kombu import Connection

from unlost.chaos.clock import OFFSET_VARIABLE
from unlost.chaos.workload import load_attribute
from unlost.errors import HarnessError

F = TypeVar("F", bound=Callable[..., Any])

#: Where the processes of a run find their broker; Celery itself lets it win over what an app sets.
BROKER_VARIABLE = "CELERY_BROKER_URL"

#: Others that would win over it.
FOREIGN_VARIABLES = ("CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL")


def broker_option(command: F) -> F:
    """Give a command the URL of the run's broker, from the environment: it holds a password."""
    return click.option("--broker", envvar=BROKER_VARIABLE, required=True, hidden=True)(command)


def clock_option(command: F) -> F:
    """Give a command the offset of the run's clock, from the environment."""
    return click.option("--clock", type=int, envvar=OFFSET_VARIABLE, required=True, hidden=True)(command)


def load_app(path: str, broker: str) -> Celery:
    """Import an application, and make sure that it works on the broker of this run and on no other.

    Args:
        path: ``module:attribute``.
        broker: URL of the run's broker.

    Raises:
        HarnessError: It is no Celery app, or would connect elsewhere.
    """
    app = load_attribute(path)
    if not isinstance(app, Celery):
        raise HarnessError(f"{path} is {type(app).__name__}, not a Celery app")
    wanted = _place(Connection(broker))
    for connection in (app.connection_for_read(), app.connection_for_write()):
        if _place(connection) != wanted:
            raise HarnessError(
                f"the app {path} connects to another broker than the run's ({_place(connection)[:2]}): "
                f"let it take its URL from {BROKER_VARIABLE}, and set no read or write URL"
            )
    return app


def _place(connection: Connection) -> tuple[str, int, str]:
    return connection.hostname or "", connection.port or 0, connection.virtual_host or "/"
