"""Stores of payloads: a folder, anything that fsspec reaches (S3, GCS, Azure, ...), a SQL database."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Column, Connection, LargeBinary, MetaData, Table, delete, insert, select
from sqlalchemy.dialects.mysql import LONGBLOB

from unlost.database.database import Database, resolve
from unlost.database.dialect import exact
from unlost.database.migrations import Migration, migrate
from unlost.database.schemes import is_supported
from unlost.errors import ClaimLost, ConfigurationError, StoreUnavailable


class ClaimStore(Protocol):
    """Keeps payloads by key; a key is written once.

    All methods raise :class:`unlost.errors.StoreUnavailable` when the store cannot be asked.
    """

    def put(self, key: str, body: bytes) -> None:
        """Keep a payload; when this returns it is there for everybody, and survives a crash."""

    def get(self, key: str) -> bytes:
        """Return a payload; raises :class:`unlost.errors.ClaimLost` when there is none."""

    def iter_keys(self) -> Iterator[str]:
        """Yield all keys."""

    def delete(self, key: str) -> None:
        """Remove a payload; one that is gone already is no error."""


class FileStore:
    """A folder, which all publishers and workers must see under the same path.

    Args:
        folder: Where; made when it is first written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, key: str, body: bytes) -> None:
        """Write a new file and sync it; a crash leaves the whole of it or a temporary file."""
        path = self._folder / key
        temporary = path.with_name(f".{uuid.uuid4().hex}")
        with _file_errors(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
            # The names are durable when their folders are synced, up to the one that was there before.
            for folder in (path.parent, path.parent.parent, self._folder):
                _sync(folder)

    def get(self, key: str) -> bytes:
        """Read the file."""
        with _file_errors(key):
            return (self._folder / key).read_bytes()

    def iter_keys(self) -> Iterator[str]:
        """Yield the paths of all files."""
        with _file_errors("*"):
            for path in self._folder.rglob("*"):
                if path.is_file() and not path.name.startswith("."):
                    yield path.relative_to(self._folder).as_posix()

    def delete(self, key: str) -> None:
        """Remove the file."""
        with _file_errors(key):
            (self._folder / key).unlink(missing_ok=True)


class FsspecStore:
    """A file system of fsspec, by URL: ``s3://bucket/prefix``, ``gs://...``, ``memory://...``.

    Args:
        url: Where; credentials come from the environment, as the file system's own documentation says.

    Raises:
        ConfigurationError: fsspec or the file system's package is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            import fsspec

            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as exc:
            raise ConfigurationError(f"the claim store {url!r} cannot be used: {exc}") from exc

    def put(self, key: str, body: bytes) -> None:
        """Write an object."""
        with _file_errors(key):
            path = self._path(key)
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(path, body)

    def get(self, key: str) -> bytes:
        """Read the object."""
        with _file_errors(key):
            return bytes(self._files.cat_file(self._path(key)))

    def iter_keys(self) -> Iterator[str]:
        """Yield the paths of all objects."""
        with _file_errors("*"):
            root = str(self._root).rstrip("/") + "/"
            for path in self._files.find(self._root):
                yield str(path).removeprefix(root)

    def delete(self, key: str) -> None:
        """Remove the object."""
        with _file_errors(key):
            if self._files.exists(self._path(key)):
                self._files.rm_file(self._path(key))

    def _path(self, key: str) -> str:
        return f"{str(self._root).rstrip('/')}/{key}"


_metadata = MetaData()
_payloads = Table(
    "unlost_payloads",
    _metadata,
    Column("key", exact(700), primary_key=True),
    Column("body", LargeBinary().with_variant(LONGBLOB(), "mysql", "mariadb"), nullable=False),
)


def _create(connection: Connection) -> None:
    _metadata.create_all(connection)


class SqlPayloads:
    """A table of a SQL database.

    On SQLite a payload cannot be stored while the caller's own transaction holds the file's write lock: in a
    unit of work, publish through the outbox.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        migrate(database, "claims", (Migration(1, _create),))

    def put(self, key: str, body: bytes) -> None:
        """Insert a row, in a transaction of its own."""
        with self._database.transaction() as connection:
            connection.execute(insert(_payloads).values(key=key, body=body))

    def get(self, key: str) -> bytes:
        """Read the row."""
        query = select(_payloads.c.body).where(_payloads.c.key == key)
        with self._database.transaction() as connection:
            body = connection.scalar(query)
        if body is None:
            raise ClaimLost(f"the stored payload {key!r} is gone")
        return bytes(body)

    def iter_keys(self) -> Iterator[str]:
        """Yield all keys."""
        with self._database.transaction() as connection:
            found = list(connection.scalars(select(_payloads.c.key)))
        yield from found

    def delete(self, key: str) -> None:
        """Delete the row."""
        with self._database.transaction() as connection:
            connection.execute(delete(_payloads).where(_payloads.c.key == key))


def open_claims(url: str, database: Database | None = None) -> ClaimStore:
    """Open a claim store.

    Args:
        url: ``file:///FOLDER``, a SQLAlchemy URL, or a URL of fsspec.
        database: One that is open already; used if the URL is its own.

    Raises:
        ConfigurationError: It is none of these, or needs what is not installed.
    """
    if url.startswith("file:///"):
        return FileStore(Path(url.removeprefix("file://")))
    if is_supported(url):
        opened = database if database is not None and database.url == resolve(url) else Database(url)
        return SqlPayloads(opened)
    if "://" not in url:
        raise ConfigurationError(
            f"the claim store {url!r} is no URL: use file:///FOLDER, a database URL, or one of fsspec (s3://...)"
        )
    return FsspecStore(url)


@contextmanager
def _file_errors(key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as exc:
        raise ClaimLost(f"the stored payload {key!r} is gone") from exc
    except OSError as exc:
        raise StoreUnavailable(f"the claim store failed at {key!r}: {exc}") from exc


def _sync(folder: Path) -> None:
    handle: Any = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
