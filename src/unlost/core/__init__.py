"""Values and pure decisions. Nothing here does I/O or knows Celery."""
