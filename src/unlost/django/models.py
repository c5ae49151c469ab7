"""The outbox as Django sees it."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from unlost.outbox.schema import outbox
from unlost.outbox.state import State


class OutboxMessage(models.Model):
    """A message that waits to be published or was, to look at: a relay writes here, under its leases.

    Database routers are asked about this model: ``db_for_write`` says where messages go whose publish names
    no database, ``allow_migrate`` which databases get the tables.
    """

    message_id = models.CharField(max_length=255)
    task = models.CharField(max_length=255)
    ordering_key = models.CharField(max_length=255, null=True)
    state = models.CharField(max_length=16, choices=[(each.value, each.value) for each in State])
    failures = models.IntegerField()
    reason = models.TextField(null=True)
    created_ms = models.BigIntegerField()
    delivered_ms = models.BigIntegerField(null=True)

    class Meta:
        """The tables are those of every unlost release, whoever makes them."""

        managed = False
        db_table = outbox.name
        ordering: ClassVar[list[str]] = ["id"]

    def __str__(self) -> str:
        return f"{self.task}[{self.message_id}] {self.state}"
