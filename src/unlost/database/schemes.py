"""Which databases a URL may name; known without SQLAlchemy, which not everybody needs."""

from __future__ import annotations

SUPPORTED = "sqlite:///PATH, postgresql+psycopg://USER@HOST/NAME or mariadb+pymysql://USER@HOST/NAME"

#: URL scheme → (driver name for SQLAlchemy, module of the driver, extra of this package that brings it).
SCHEMES = {
    "sqlite": ("sqlite", "sqlite3", ""),
    "sqlite+pysqlite": ("sqlite", "sqlite3", ""),
    "postgresql": ("postgresql+psycopg", "psycopg", "postgresql"),
    "postgresql+psycopg": ("postgresql+psycopg", "psycopg", "postgresql"),
    "mariadb": ("mariadb+pymysql", "pymysql", "mariadb"),
    "mariadb+pymysql": ("mariadb+pymysql", "pymysql", "mariadb"),
}

_REDIS = ("redis", "rediss", "unix")


def is_redis(url: str) -> bool:
    """Whether a URL's scheme is one of Redis."""
    return url.partition(":")[0] in _REDIS


def is_supported(url: str) -> bool:
    """Whether a URL's scheme is one of a database that we support."""
    return url.partition(":")[0] in SCHEMES
