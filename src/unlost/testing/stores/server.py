"""A private server of a store, and what can be done to it."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from unlost.errors import HarnessError
from unlost.testing.brokers.node import make_directory
from unlost.testing.brokers.ports import free_ports
from unlost.testing.brokers.ward import Ward
from unlost.testing.stores.recipe import RECIPES, Place, Recipe
from unlost.testing.waiting import wait_until

logger = logging.getLogger(__name__)

KINDS = tuple(RECIPES)
BOOT_PATIENCE = timedelta(seconds=90)
_LOG_LINES = 20


class StoreServer:
    """A running server, on 127.0.0.1 only; ends with this process.

    Args:
        recipe: What it is.
        environ: ``PATH`` to find it on, ``TMPDIR`` for its data.

    Raises:
        HarnessError: It is not installed, or did not come up.
    """

    def __init__(self, recipe: Recipe, environ: Mapping[str, str]) -> None:
        if (reason := recipe.missing()) is not None:
            raise HarnessError(reason)
        self._recipe = recipe
        directory, lock = make_directory(environ, f"unlost-{recipe.kind}-")
        self.place = Place(directory, free_ports(1)[0])
        with Ward.making(directory, lock):
            recipe.own(directory)
            recipe.prepare(self.place)
            self._ward = Ward(directory, lock, self._specification())
        try:
            self._tell("start")
            self.wait_ready()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<{self.kind} server at 127.0.0.1:{self.place.port}>"

    @property
    def kind(self) -> str:
        """Return ``postgresql``, ``mariadb`` or ``redis``."""
        return self._recipe.kind

    def _specification(self) -> dict[str, Any]:
        return {
            "directory": str(self.place.directory),
            "log": str(self.place.directory / "server.log"),
            "server": self._recipe.command(self.place),
            "environ": self._recipe.environ(self.place),
            "family": True,
        }

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """Make an empty database and yield its URL; it is dropped at the end if the server still answers."""
        name = f"unlost_{secrets.token_hex(6)}"
        url = self._recipe.create(self.place, name)
        try:
            yield url
        finally:
            try:
                self._recipe.drop(self.place, name)
            except Exception as exc:  # noqa: BLE001 - whatever its client raises; the server is ours anyway
                logger.warning("database %s was not dropped: %s", name, exc)

    def kill(self) -> None:
        """Kill the server with SIGKILL, its children too."""
        self._tell("kill")

    def start(self) -> None:
        """Start the server again on the same port and data; returns when it answers."""
        self._tell("start")
        self.wait_ready()

    def pause(self) -> None:
        """Freeze the server: connections stay open and nobody answers."""
        self._tell("pause")

    def resume(self) -> None:
        """Let a frozen server go on."""
        self._tell("resume")

    def close(self) -> None:
        """Kill the server and remove its data; a second call does nothing."""
        self._ward.close()

    def wait_ready(self) -> None:
        """Wait until the server answers.

        Raises:
            HarnessError: It ended, or did not answer in time; its last lines are in the message.
        """
        refusals: list[str] = []
        wait_until(
            lambda: self._answers(refusals),
            BOOT_PATIENCE,
            f"{self!r} answers",
            why_not=lambda: f"{refusals[-1]}; its last lines:\n{self._last_lines()}",
        )

    def _answers(self, refusals: list[str]) -> bool:
        if self._tell("status")["server"] is None:
            raise HarnessError(f"{self!r} ended while it was starting; its last lines:\n{self._last_lines()}")
        try:
            self._recipe.ask(self.place)
        except Exception as exc:  # noqa: BLE001 - each client has its own errors, and all mean "not yet"
            refusals.append(str(exc))
            return False
        return True

    def _last_lines(self) -> str:
        lines = (self.place.directory / "server.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_LINES:])

    def _tell(self, command: str) -> dict[str, Any]:
        return self._ward.tell(command, repr(self))


def missing(kind: str, environ: Mapping[str, str]) -> str | None:
    """Say why no server of a kind can be started here, or ``None``."""
    return RECIPES[kind](environ).missing()


@contextmanager
def start_store(kind: str, environ: Mapping[str, str]) -> Iterator[StoreServer]:
    """Start a private server and end it with the block.

    Args:
        kind: ``postgresql``, ``mariadb`` or ``redis``.
        environ: ``PATH`` to find it on, ``TMPDIR`` for its data.

    Raises:
        HarnessError: It is not installed, or did not come up.
    """
    server = StoreServer(RECIPES[kind](environ), environ)
    try:
        yield server
    finally:
        server.close()
