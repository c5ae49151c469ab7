"""A Django project for tests: its settings, an application with one model, and databases that come and go.

``python -m tests.support.django_project COMMAND`` is its ``manage.py``; the URL of its default database is in
``DJANGO_DATABASE``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import django
import pymysql
from django.conf import settings
from django.db import connections
from sqlalchemy.engine import URL, make_url

_ENGINES = {"sqlite": "sqlite3", "postgresql": "postgresql", "mariadb": "mysql"}


def entry(url: str) -> dict[str, Any]:
    """Return the entry of ``DATABASES`` for a database that a URL of SQLAlchemy's names."""
    parsed: URL = make_url(url)
    return {
        "ENGINE": f"django.db.backends.{_ENGINES[parsed.get_backend_name()]}",
        "NAME": parsed.database,
        "USER": parsed.username or "",
        "PASSWORD": parsed.password or "",
        "HOST": parsed.host or dict(parsed.query).get("host", ""),
        "PORT": parsed.port or "",
    }


def set_up(databases: Mapping[str, str] | None = None) -> None:
    """Configure Django in this process, once."""
    if settings.configured:
        return
    # Django's own driver for MariaDB has to be compiled; this one says that it is as good.
    pymysql.install_as_MySQLdb()
    settings.configure(
        DATABASES={alias: entry(url) for alias, url in (databases or {}).items()},
        INSTALLED_APPS=["unlost.django", "tests.support.django_shop"],
        USE_TZ=True,
        SECRET_KEY="for tests",
    )
    django.setup()


@contextmanager
def on_databases(**urls: str) -> Iterator[None]:
    """Let Django use these databases, by alias, in the block; this thread's connections are closed then."""
    set_up()
    before = connections.settings
    _forget()
    connections.settings = connections.configure_settings({name: entry(url) for name, url in urls.items()})
    try:
        yield
    finally:
        _forget()
        connections.settings = before


def _forget() -> None:
    for connection in connections.all(initialized_only=True):
        connection.close()
        del connections[connection.alias]


def main() -> None:
    """Run a command of ``manage.py``."""
    from django.core.management import execute_from_command_line

    set_up({"default": os.environ["DJANGO_DATABASE"]})
    execute_from_command_line()


if __name__ == "__main__":
    main()
