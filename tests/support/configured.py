"""The project's own RabbitMQ configuration, as the files of a container."""

from __future__ import annotations

import os
import secrets
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import amqp
import httpx

from unlost.testing.brokers.cluster import archive_of
from unlost.testing.brokers.docker import OWNER_LABEL, connect_engine, image_of, remove_orphans
from unlost.testing.brokers.owner import own_name
from unlost.testing.brokers.ports import free_ports
from unlost.testing.waiting import wait_until

CONFIGURATION = Path(__file__).parents[2] / "rabbitmq"
BOOT = timedelta(seconds=90)


def configuration(*, cluster: bool = False, tls: Path | None = None) -> dict[str, str]:
    """Return the files of a node by their path below ``/etc/rabbitmq``.

    Args:
        cluster: Those of one of three nodes.
        tls: Where certificates are, for a node that speaks TLS only.
    """
    names = {
        "rabbitmq.conf": "rabbitmq.conf",
        "enabled_plugins": "enabled_plugins",
        "conf.d/70-definitions.conf": "definitions.conf",
        "definitions.d/shop.json": "definitions.d/shop.json",
    }
    if cluster:
        names["conf.d/50-cluster.conf"] = "cluster.conf"
    if tls is not None:
        names["conf.d/60-tls.conf"] = "tls.conf"
    files = {path: (CONFIGURATION / name).read_text() for path, name in names.items()}
    if tls is not None:
        files |= {f"tls/{name}": (tls / name).read_text() for name in ("ca.pem", "server.pem", "server.key")}
    return files


@dataclass(frozen=True)
class TlsNode:
    """A node that speaks TLS only.

    Attributes:
        folder: The throwaway authority's files.
        amqp_port: The AMQP listener, on 127.0.0.1.
        management_port: The management listener, on 127.0.0.1.
        password: Of the user ``unlost``.
    """

    folder: Path
    amqp_port: int
    management_port: int
    password: str

    def context(self, *, certificate: bool = True) -> ssl.SSLContext:
        """Return what a client that knows the authority uses, with a certificate of its own or without."""
        made = ssl.create_default_context(cafile=self.folder / "ca.pem")
        if certificate:
            made.load_cert_chain(self.folder / "client.pem", self.folder / "client.key")
        return made

    def connect(self, *, known: bool = True, certificate: bool = True) -> Any:
        """Open an AMQP connection, as a client that knows the authority and has a certificate, or lacks one.

        Raises:
            OSError: Client or broker refuses the other.
        """
        options: dict[str, Any] = {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "localhost"}
        if known:
            options["ca_certs"] = str(self.folder / "ca.pem")
        if certificate:
            options |= {
                "certfile": str(self.folder / "client.pem"),
                "keyfile": str(self.folder / "client.key"),
            }
        connection = amqp.Connection(
            host=f"localhost:{self.amqp_port}",
            userid="unlost",
            password=self.password,
            ssl=options,
            connect_timeout=5,
            read_timeout=10,
        )
        try:
            connection.connect()
        except BaseException:
            connection.collect()
            raise
        return connection

    def overview(self, context: ssl.SSLContext) -> httpx.Response:
        """Ask the management API."""
        with httpx.Client(verify=context, trust_env=False, auth=("unlost", self.password)) as client:
            return client.get(f"https://localhost:{self.management_port}/api/overview")


@contextmanager
def tls_node(folder: Path) -> Iterator[TlsNode]:
    """Run one node of the project's configuration with a throwaway authority in ``folder``."""
    subprocess.run([CONFIGURATION / "tls" / "make-ca", folder], check=True, capture_output=True)
    amqp_port, management_port = free_ports(2)
    node = TlsNode(folder, amqp_port, management_port, secrets.token_hex(16))
    with connect_engine(os.environ) as engine:
        remove_orphans(engine)
        container = engine.containers.create(
            image_of(engine, os.environ),
            name=f"unlost-{secrets.token_hex(6)}",
            labels={OWNER_LABEL: own_name()},
            environment={"RABBITMQ_DEFAULT_USER": "unlost", "RABBITMQ_DEFAULT_PASS": node.password},
            ports={"5671/tcp": ("127.0.0.1", amqp_port), "15671/tcp": ("127.0.0.1", management_port)},
        )
        try:
            container.put_archive("/etc/rabbitmq", archive_of(configuration(tls=folder)))
            container.start()
            wait_until(
                lambda: _answers(node), BOOT, "the node answers", why_not=lambda: container.logs(tail=20)
            )
            yield node
        finally:
            container.remove(force=True, v=True)


def _answers(node: TlsNode) -> bool:
    try:
        return node.overview(node.context()).is_success
    except httpx.TransportError:
        return False
