"""The Django application."""

from __future__ import annotations

import os

from django.apps import AppConfig


class UnlostConfig(AppConfig):
    """Brings the outbox's tables, a model to look at them, and the command ``unlost_outbox``."""

    name = "unlost.django"
    label = "unlost"
    verbose_name = "unlost"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Keep SQLite's locks from being inherited by the worker's children."""
        from unlost.django.unit import close_sqlite

        os.register_at_fork(before=close_sqlite)
