"""``manage.py unlost_outbox``: ``unlost outbox`` on one of Django's databases."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import BaseCommand
from django.db import DEFAULT_DB_ALIAS

from unlost.cli.outbox import outbox
from unlost.django.database import store_url


class Command(BaseCommand):
    """Runs ``unlost outbox`` with the database that ``DATABASES`` describes."""

    help = "Run `unlost outbox` (relay, status, retry, ...) on one of Django's databases."
    requires_system_checks: tuple[str, ...] = ()

    def add_arguments(self, parser: Any) -> None:
        """Take the database's alias, and pass everything else on."""
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="Alias of the database.")
        parser.add_argument("arguments", nargs=argparse.REMAINDER, help="As for `unlost outbox`.")

    def handle(self, *_: Any, database: str, arguments: list[str], **__: Any) -> None:
        """Run it; the exit status is that of ``unlost outbox``."""
        # By way of defaults: a command line can be seen by everybody on the host.
        store = {"store": store_url(database)}
        outbox.main(
            arguments,
            prog_name="manage.py unlost_outbox",
            default_map=dict.fromkeys(outbox.commands, store),
        )
