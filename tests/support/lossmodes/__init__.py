"""The same scenario on plain Celery and on unlost, and what became of the tasks."""
