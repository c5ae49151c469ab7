"""How a private PostgreSQL, MariaDB or Redis is prepared, started and asked: the facts, no life cycle.

All of them sync their logs at each commit, as in production: what a test kills must come back with what it
has confirmed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from unlost.errors import HarnessError

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Place:
    """Where a server lives.

    Attributes:
        directory: Its own; belongs to the account that it runs under.
        port: On 127.0.0.1.
    """

    directory: Path
    port: int

    @property
    def data(self) -> Path:
        """Return where its data are."""
        return self.directory / "data"


class Recipe(ABC):
    """One kind of server."""

    kind: ClassVar[str]
    #: The Debian package that brings it.
    package: ClassVar[str]
    #: Programs that must be there; the first is the server.
    programs: ClassVar[tuple[str, ...]]
    #: The account it runs under when we are root, if it refuses to be root.
    account: ClassVar[str | None] = None

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.path = f"{environ.get('PATH', '')}:{_SYSTEM_PATH}:{self.more_path()}".strip(":")

    def more_path(self) -> str:
        """Return where else the programs may be."""
        return ""

    def missing(self) -> str | None:
        """Say what is missing to run one, or ``None``."""
        for program in self.programs:
            if shutil.which(program, path=self.path) is None:
                return f"no {program} here: install the package {self.package}"
        return None

    def find(self, program: str) -> str:
        """Return the path of a program.

        Raises:
            HarnessError: It is not installed.
        """
        found = shutil.which(program, path=self.path)
        if found is None:
            raise HarnessError(f"no {program} here: install the package {self.package}")
        return found

    def own(self, directory: Path) -> None:
        """Give the directory to the account that the server runs under."""
        if self.account is not None and os.geteuid() == 0:
            entry = pwd.getpwnam(self.account)
            for path in (directory, *directory.rglob("*")):
                os.chown(path, entry.pw_uid, entry.pw_gid)

    def as_account(self, *command: str) -> list[str]:
        """Return a command that runs under the account, and dies with its parent as ours do."""
        if self.account is None or os.geteuid() != 0:
            return list(command)
        entry = pwd.getpwnam(self.account)
        ids = [f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
        # A change of user makes the kernel forget that the child was to die with its parent.
        return [self.find("setpriv"), *ids, "--pdeathsig=KILL", "--", *command]

    def run(self, place: Place, *command: str) -> None:
        """Run a command under the account, to its end."""
        done = subprocess.run(
            self.as_account(*command),
            cwd=place.directory,
            env=self.environ(place),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise HarnessError(f"{Path(command[0]).name} failed: {done.stdout}{done.stderr}")

    def environ(self, place: Place) -> dict[str, str]:
        """Return the variables of the server; nothing else of the environment is handed on."""
        return {"PATH": self.path, "HOME": str(place.directory), "LC_ALL": "C.UTF-8", "TZ": "UTC"}

    @abstractmethod
    def prepare(self, place: Place) -> None:
        """Make the data directory."""

    @abstractmethod
    def command(self, place: Place) -> list[str]:
        """Return what starts the server in the foreground."""

    @abstractmethod
    def ask(self, place: Place) -> None:
        """Ask the server something; raises when it does not answer."""

    @abstractmethod
    def create(self, place: Place, name: str) -> str:
        """Make an empty database and return its URL."""

    @abstractmethod
    def drop(self, place: Place, name: str) -> None:
        """Remove a database."""


class PostgreSQLRecipe(Recipe):
    """PostgreSQL; refuses to be root."""

    kind = "postgresql"
    package = "postgresql"
    programs = ("postgres", "initdb", "setpriv")
    account = "postgres"

    def more_path(self) -> str:
        """Return where Debian keeps the servers of each version."""
        return ":".join(str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))

    def prepare(self, place: Place) -> None:
        """Make a cluster whose only user needs no password: it listens on loopback only."""
        arguments = ("-D", str(place.data), "-U", "unlost", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.run(place, self.find("initdb"), *arguments)

    def command(self, place: Place) -> list[str]:
        """Return ``postgres`` with its sockets and port."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(place.port),
            "unix_socket_directories": "",
            "max_connections": "200",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return self.as_account(self.find("postgres"), "-D", str(place.data), *options)

    def ask(self, place: Place) -> None:
        """Connect and run a query."""
        self._execute(place, "SELECT 1")

    def create(self, place: Place, name: str) -> str:
        """Create a database."""
        self._execute(place, f'CREATE DATABASE "{name}"')
        return f"postgresql+psycopg://unlost@127.0.0.1:{place.port}/{name}"

    def drop(self, place: Place, name: str) -> None:
        """Drop a database and whoever is connected to it."""
        self._execute(place, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _execute(self, place: Place, statement: str) -> None:
        import psycopg

        where = f"host=127.0.0.1 port={place.port} user=unlost dbname=postgres connect_timeout=5"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(statement.encode())


class MariaDBRecipe(Recipe):
    """MariaDB; its server refuses to be root unless it is told."""

    kind = "mariadb"
    package = "mariadb-server"
    programs = ("mariadbd", "mariadb-install-db", "setpriv")
    account = "mysql"

    def prepare(self, place: Place) -> None:
        """Make the system tables, with a user for connections over TCP."""
        place.data.mkdir()
        self.own(place.data)
        (place.directory / "init.sql").write_text(
            "CREATE USER IF NOT EXISTS unlost@'127.0.0.1';\n"
            "GRANT ALL PRIVILEGES ON *.* TO unlost@'127.0.0.1' WITH GRANT OPTION;\n"
        )
        self.own(place.directory)
        options = [f"--datadir={place.data}", "--skip-test-db", "--auth-root-authentication-method=normal"]
        self.run(place, self.find("mariadb-install-db"), "--no-defaults", *options)

    def command(self, place: Place) -> list[str]:
        """Return ``mariadbd`` with its files and port."""
        return self.as_account(
            self.find("mariadbd"),
            "--no-defaults",
            f"--datadir={place.data}",
            f"--init-file={place.directory / 'init.sql'}",
            f"--socket={place.directory / 'socket'}",
            f"--pid-file={place.directory / 'pid'}",
            "--bind-address=127.0.0.1",
            f"--port={place.port}",
            "--skip-name-resolve",
            "--innodb-buffer-pool-size=64M",
            "--max-connections=200",
        )

    def ask(self, place: Place) -> None:
        """Connect and run a query."""
        self._execute(place, "SELECT 1")

    def create(self, place: Place, name: str) -> str:
        """Create a database with the server's own, caseless collation, as users will have it."""
        self._execute(place, f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
        return f"mariadb+pymysql://unlost@127.0.0.1:{place.port}/{name}"

    def drop(self, place: Place, name: str) -> None:
        """Drop a database."""
        self._execute(place, f"DROP DATABASE IF EXISTS `{name}`")

    def _execute(self, place: Place, statement: str) -> None:
        import pymysql

        with pymysql.connect(
            host="127.0.0.1", port=place.port, user="unlost", connect_timeout=5, autocommit=True
        ) as connection:
            connection.cursor().execute(statement)


class RedisRecipe(Recipe):
    """Redis with an append-only file that is synced at each write."""

    kind = "redis"
    package = "redis-server"
    programs = ("redis-server",)

    def prepare(self, place: Place) -> None:
        """Make the directory for the append-only file."""
        place.data.mkdir()

    def command(self, place: Place) -> list[str]:
        """Return ``redis-server`` that evicts nothing and loses nothing."""
        options = {
            "bind": "127.0.0.1",
            "port": str(place.port),
            "dir": str(place.data),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
            "databases": "1024",
        }
        return [
            self.find("redis-server"),
            *(part for name, value in options.items() for part in (f"--{name}", value)),
        ]

    def ask(self, place: Place) -> None:
        """Ping."""
        import redis

        with redis.Redis("127.0.0.1", place.port, socket_timeout=5) as client:
            client.ping()

    def create(self, place: Place, name: str) -> str:
        """Return an empty database: one of Redis' numbers, chosen by the name."""
        url = f"redis://127.0.0.1:{place.port}/{self._number(name)}"
        self._flush(url)
        return url

    def drop(self, place: Place, name: str) -> None:
        """Empty a database."""
        self._flush(f"redis://127.0.0.1:{place.port}/{self._number(name)}")

    def _number(self, name: str) -> int:
        return int(name.rpartition("_")[2], 16) % 1024

    def _flush(self, url: str) -> None:
        import redis

        with redis.Redis.from_url(url, socket_timeout=5) as client:
            client.flushdb()


RECIPES: Mapping[str, type[Recipe]] = {
    each.kind: each for each in (PostgreSQLRecipe, MariaDBRecipe, RedisRecipe)
}
