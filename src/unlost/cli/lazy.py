"""A command group that imports a command when it is called.

``unlost --help`` and ``unlost topology`` must not pay for Celery, which other commands import.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class LazyGroup(click.Group):
    """A click group whose commands are ``name: ("module:attribute", "one line of help")``."""

    def __init__(self, name: str, commands: Mapping[str, tuple[str, str]], **attributes: Any) -> None:
        super().__init__(name, **attributes)
        self._lazy = commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, without importing any."""
        return sorted({*self._lazy, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or ``None`` if there is none of that name."""
        if cmd_name not in self._lazy:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self._lazy[cmd_name][0].partition(":")
        try:
            command: click.Command = getattr(import_module(module), attribute)
        except ModuleNotFoundError as exc:
            raise click.UsageError(
                f"{cmd_name} needs {exc.name}, which is not installed: pip install 'unlost[chaos]'"
            ) from exc
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._help_of(name)) for name in self.list_commands(ctx)])

    def _help_of(self, name: str) -> str:
        return self._lazy[name][1] if name in self._lazy else self.commands[name].get_short_help_str(80)
