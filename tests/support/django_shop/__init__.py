"""A Django application with one table."""
