"""What the shop keeps."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """An order."""

    number = models.IntegerField(primary_key=True)

    class Meta:
        """Its table is made by the tests."""

        app_label = "django_shop"

    def __str__(self) -> str:
        return f"order {self.number}"


class Effect(models.Model):
    """An effect: nothing keeps a second one of the same label out."""

    id = models.BigAutoField(primary_key=True)
    label = models.CharField(max_length=64)

    class Meta:
        """Its table is made by the tests."""

        app_label = "django_shop"

    def __str__(self) -> str:
        return f"effect {self.label}"
