"""The files, variables and commands of a private RabbitMQ node; the facts without the processes."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from unlost.testing.brokers.endpoint import Endpoint
from unlost.testing.brokers.ports import free_ports

PREFIX = "unlost-rabbitmq-"
_LOCK = "lock"
# Between the making of a directory and its lock a sweep must not take it for a dead one's.
_NEWBORN = timedelta(seconds=60)
_PACKAGED_SERVERS = "usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Programs:
    """The executables of a node."""

    server: Path
    epmd: Path
    search_path: str


@dataclass(frozen=True)
class Node:
    """A private node: its own name, ports, data, cookie and Erlang port mapper.

    Attributes:
        directory: Holds everything the node writes; only its owner may read it.
        amqp: The AMQP listener, on 127.0.0.1.
        management: The management listener, on 127.0.0.1.
        specification: What the guardian needs to run it; holds no password.
    """

    directory: Path
    amqp: Endpoint
    management: Endpoint
    specification: dict[str, Any] = field(repr=False)

    @property
    def log(self) -> Path:
        """What the node prints."""
        return self.directory / "node.log"


def find_programs(environ: Mapping[str, str], root: Path = Path("/")) -> Programs | str:
    """Find RabbitMQ's own start script and epmd, or say which is missing.

    What Debian puts on the PATH is a wrapper that insists on root and the system's node.
    """
    search_path = f"{environ.get('PATH', '')}:{_SYSTEM_PATH}".lstrip(":")
    on_path = shutil.which("rabbitmq-server", path=search_path)
    servers = [Path(on_path).resolve()] if on_path else []
    servers += sorted(root.glob(_PACKAGED_SERVERS), reverse=True)
    server = next(filter(_is_start_script, servers), None)
    if server is None:
        return "no rabbitmq-server on the PATH: install the package rabbitmq-server"
    epmd = shutil.which("epmd", path=search_path)
    if epmd is None:
        return "no epmd on the PATH: install Erlang (Debian: the package erlang-base)"
    return Programs(server, Path(epmd), search_path)


def sweep(parent: Path, prefix: str = PREFIX) -> None:
    """Remove the directories that killed guardians left; those in use are locked."""
    for directory in parent.glob(f"{prefix}*"):
        try:
            if time.time() - directory.stat().st_mtime > _NEWBORN.total_seconds():
                _remove_unless_locked(directory)
        except (BlockingIOError, FileNotFoundError, PermissionError):
            continue  # in use, just removed, or another user's


def make_directory(environ: Mapping[str, str], prefix: str = PREFIX) -> tuple[Path, int]:
    """Make a server's directory and lock it.

    Returns:
        The directory, and a file descriptor. The lock holds until every copy of the descriptor is
        closed, however the processes that have one end.
    """
    parent = Path(environ.get("TMPDIR") or tempfile.gettempdir())
    sweep(parent, prefix)
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return directory, lock


def make_node(directory: Path, programs: Programs) -> Node:
    """Choose ports and credentials, and write the node's files."""
    amqp_port, management_port, dist_port, epmd_port = free_ports(4)
    amqp = Endpoint("amqp", "127.0.0.1", amqp_port, "unlost", secrets.token_hex(16), "/")
    management = Endpoint("http", "127.0.0.1", management_port, amqp.user, amqp.password)
    _write_files(directory, amqp, management)
    specification = {
        "directory": str(directory),
        "log": str(directory / "node.log"),
        "epmd": [str(programs.epmd), "-port", str(epmd_port), "-address", "127.0.0.1"],
        "epmd_port": epmd_port,
        "server": [str(programs.server)],
        "environ": _variables(directory, programs, dist_port, epmd_port),
    }
    return Node(directory, amqp, management, specification)


def _is_start_script(path: Path) -> bool:
    return path.name == "rabbitmq-server" and (path.parent / "rabbitmq-env").exists()


def _remove_unless_locked(directory: Path) -> None:
    lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory)
    finally:
        os.close(lock)


def _write_files(directory: Path, amqp: Endpoint, management: Endpoint) -> None:
    (directory / "rabbitmq.conf").write_text(_configuration(amqp, management))
    (directory / "enabled_plugins").write_text("[rabbitmq_management].\n")
    (directory / "advanced.config").write_text("[].\n")
    cookie = directory / ".erlang.cookie"
    cookie.write_text(secrets.token_hex(16))
    cookie.chmod(0o400)


def _configuration(amqp: Endpoint, management: Endpoint) -> str:
    return f"""\
listeners.tcp.1 = {amqp.place}
management.tcp.ip = {management.host}
management.tcp.port = {management.port}
default_user = {amqp.user}
default_pass = {amqp.password}
log.console = true
log.file = false
"""


def _variables(directory: Path, programs: Programs, dist_port: int, epmd_port: int) -> dict[str, str]:
    """Name every place the node would otherwise share with the system's (rabbitmq-env, rabbit_env.erl).

    Nothing else of the environment is handed on: a stray ``RABBITMQ_*`` would reach into it.
    """
    return {
        "PATH": programs.search_path,
        "LANG": "C.UTF-8",
        "HOME": str(directory),  # the cookie is read from there
        "RUNNING_UNDER_SYSTEMD": "1",  # the script becomes the node instead of its parent
        "RABBITMQ_NODENAME": f"unlost{dist_port}@localhost",
        "RABBITMQ_DIST_PORT": str(dist_port),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "ERL_EPMD_PORT": str(epmd_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_CRASH_DUMP_SECONDS": "0",  # no dump
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        "RABBITMQ_CONFIG_FILES": str(directory / "conf.d"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(directory / "generated"),
        "RABBITMQ_PLUGINS_EXPAND_DIR": str(directory / "plugins-expand"),
        "RABBITMQ_MNESIA_BASE": str(directory / "data"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_PID_FILE": str(directory / "pid"),
    }
