"""What the commands share: where the topology comes from, which broker, and how things are printed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click

from unlost.broker.management import Management, management_url_of, vhost_of
from unlost.config import environment
from unlost.errors import ConfigurationError, TopologyError
from unlost.topology.expand import Version
from unlost.topology.full_form import Objects
from unlost.topology.model import Topology
from unlost.topology.objects import shown
from unlost.topology.plan import Step

_Command = TypeVar("_Command", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
rabbitmq_option = click.option(
    "--rabbitmq", default="4.3", show_default=True, metavar="VERSION", help="For which version of the broker."
)


def topology_source(command: _Command) -> _Command:
    """Add PATH and ``--module``, which :func:`load_topology` reads."""
    path = click.argument("path", type=click.Path(path_type=Path), required=False)
    module = click.option(
        "--module",
        metavar="MODULE:NAME",
        help="Take a Topology from Python instead of PATH: 'app:topology'.",
    )
    return path(module(command))


def broker_options(command: _Command) -> _Command:
    """Add ``--broker`` and ``--management``, which :func:`connected` reads."""
    broker = click.option(
        "--broker",
        envvar=["UNLOST_BROKER_URL", "CELERY_BROKER_URL"],
        show_envvar=True,
        required=True,
        metavar="URL",
        help="AMQP URL of the broker; its vhost is where the topology goes.",
    )
    management = click.option(
        "--management",
        "management_url",
        envvar="UNLOST_MANAGEMENT_URL",
        show_envvar=True,
        metavar="URL",
        help="URL of the management API. Default: port 15672 of the broker's host.",
    )
    return broker(management(command))


def load_topology(path: Path | None, module: str | None) -> Topology:
    """Return the topology of a path or of a Python module; by default that of ``topology/``.

    Raises:
        TopologyError: It cannot be had, or is wrong.
    """
    if module is None:
        return Topology.load(path or Path("topology/"))
    if path is not None:
        raise TopologyError(f"both {path} and --module {module} are given; keep one of the two")
    name, _, attribute = module.partition(":")
    with _current_directory_first():
        try:
            found = getattr(import_module(name), attribute or "topology")
        except (ImportError, AttributeError) as exc:
            raise TopologyError(f"--module {module}: cannot be had ({exc}); write MODULE:NAME") from exc
    if callable(found) and not isinstance(found, Topology):
        found = found()
    if not isinstance(found, Topology):
        raise TopologyError(f"--module {module}: is a {type(found).__name__}, not an unlost.Topology")
    return found


@contextmanager
def _current_directory_first() -> Iterator[None]:
    """Find modules as ``python -m`` does."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.remove(str(Path.cwd()))


def connected(broker: str, management_url: str | None) -> Management:
    """Return the management API that the options name."""
    return Management(management_url or management_url_of(broker), vhost_of(broker))


def secrets_of(topology: Topology) -> Mapping[str, str]:
    """Return the passwords of declared users, by the variable that holds them.

    Raises:
        ConfigurationError: A variable is not set.
    """
    variables = (topology.objects or Objects()).password_variables
    environ = environment()
    missing = sorted(set(variables) - environ.keys())
    if missing:
        raise ConfigurationError(f"the password of a declared user is in ${missing[0]}, which is not set")
    return {name: environ[name] for name in variables}


def version_of(text: str) -> Version:
    """Read a version such as ``4.3``."""
    try:
        major, minor, *_ = (int(part) for part in text.split("."))
    except ValueError as exc:
        raise click.BadParameter(f"{text!r} is no version such as 4.3", param_hint="--rabbitmq") from exc
    return major, minor


def step_as_json(step: Step) -> dict[str, Any]:
    """Return a step for machines."""
    return {
        "action": step.action,
        "kind": step.object.kind,
        "key": step.object.key,
        "deletes": step.deletes,
        "reasons": step.reasons,
        "risks": [asdict(risk) for risk in step.risks],
        "object": shown(step.object),
    }
