"""unlost in a Django project: tasks that are published when Django's transaction commits.

    INSTALLED_APPS = [..., "unlost.django"]

Then ``python manage.py migrate`` makes the outbox's tables, :mod:`unlost.django.outbox` publishes in the
transaction that ``transaction.atomic()`` has opened, and ``python manage.py unlost_outbox relay`` relays.
"""
