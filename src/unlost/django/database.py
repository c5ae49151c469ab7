"""Django's databases as unlost's store: the URL that an entry of ``DATABASES`` amounts to."""

from __future__ import annotations

from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections
from sqlalchemy import URL

from unlost.errors import ConfigurationError

_DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "mysql": "mariadb+pymysql",
    "sqlite": "sqlite",
}

#: Options of Django's PostgreSQL backend that are not libpq's.
_NOT_LIBPQ = frozenset({"pool", "server_side_binding", "isolation_level", "assume_role", "cursor_factory"})


def store_url(using: str = DEFAULT_DB_ALIAS) -> str:
    """Return the URL of one of Django's databases, for ``unlost.install(app, store=store_url())``.

    It holds the password, as ``DATABASES`` does: keep it out of logs and command lines.

    Args:
        using: Its alias.

    Raises:
        ConfigurationError: It is of a kind that unlost does not know.
    """
    connection = connections[using]
    if connection.vendor not in _DRIVERS:
        raise ConfigurationError(
            f"database {using!r} is {connection.vendor}: use PostgreSQL, MariaDB or SQLite as the store"
        )
    made = _url(_DRIVERS[connection.vendor], connection.settings_dict)
    return made.render_as_string(hide_password=False)


def _url(driver: str, entry: dict[str, Any]) -> URL:
    if driver == "sqlite":
        return URL.create(driver, database=str(entry["NAME"]))
    host, options = entry["HOST"] or None, entry["OPTIONS"]
    query: dict[str, str] = {}
    if driver.startswith("postgresql"):
        query = {name: str(value) for name, value in options.items() if name not in _NOT_LIBPQ}
    if host is not None and host.startswith("/"):
        query["host" if driver.startswith("postgresql") else "unix_socket"] = host
        host = None
    return URL.create(
        driver,
        username=entry["USER"] or None,
        password=entry["PASSWORD"] or None,
        host=host,
        port=int(entry["PORT"]) if entry["PORT"] else None,
        database=str(entry["NAME"]) or None,
        query=query,
    )
