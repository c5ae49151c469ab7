"""The Django application."""

from __future__ import annotations

from django.apps import AppConfig


class UnlostConfig(AppConfig):
    """Brings the outbox's tables, a model to look at them, and the command ``unlost_outbox``."""

    name = "unlost.django"
    label = "unlost"
    verbose_name = "unlost"
    default_auto_field = "django.db.models.BigAutoField"
