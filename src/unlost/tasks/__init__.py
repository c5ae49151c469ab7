"""Celery glue: everything that knows how Celery publishes, runs and settles."""
