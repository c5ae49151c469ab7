"""The outbox."""

from typing import ClassVar

from django.db import migrations, models

from unlost.django.schema import bring_up_to


class Migration(migrations.Migration):
    """The tables' first version."""

    initial = True

    operations: ClassVar = [
        bring_up_to(1),
        migrations.CreateModel(
            name="OutboxMessage",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("message_id", models.CharField(max_length=255)),
                ("task", models.CharField(max_length=255)),
                ("ordering_key", models.CharField(max_length=255, null=True)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("pending", "pending"),
                            ("delivered", "delivered"),
                            ("parked", "parked"),
                        ],
                        max_length=16,
                    ),
                ),
                ("failures", models.IntegerField()),
                ("reason", models.TextField(null=True)),
                ("created_ms", models.BigIntegerField()),
                ("delivered_ms", models.BigIntegerField(null=True)),
            ],
            options={"db_table": "unlost_outbox", "ordering": ["id"], "managed": False},
        ),
    ]
