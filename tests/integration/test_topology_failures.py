"""What goes wrong between ``apply`` and a broker: said clearly, and finished by the next apply."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from unlost.broker.apply import apply, compare
from unlost.broker.management import Management
from unlost.errors import BrokerUnavailable
from unlost.testing.brokers import Broker, Vhost
from unlost.topology.expand import expand
from unlost.topology.model import Delay, Topology, WorkQueue

pytestmark = pytest.mark.one_broker

SHOP = Topology(name="shop", queues={"shop.stock": WorkQueue()}, delay=Delay(levels=2))


def test_a_broker_that_dies_in_the_middle_is_no_half_topology(own_broker: Broker) -> None:
    """The broker is killed during apply: the error says so; after a restart the next one does the rest."""
    total = len(expand(SHOP, own_broker.version[:2]).objects)
    with own_broker.fresh_vhost() as vhost, Management(vhost.management_url, vhost.name) as management:
        told: list[object] = []

        def kill_halfway(step: object) -> None:
            told.append(step)
            if len(told) == total // 2:
                own_broker.kill()

        with pytest.raises(BrokerUnavailable, match="cannot be reached"):
            apply(SHOP, management, kill_halfway)
        own_broker.restart()
        applied = apply(SHOP, management)
        assert 0 < applied.changed <= total - len(told) + 1
        assert compare(SHOP, management).drift == ()


def test_a_broker_without_the_management_plugin_is_named(vhost: Vhost) -> None:
    """Where something else than the management API answers, the error names address and plugin."""
    amqp = vhost.amqp_url.rpartition("@")[2].partition("/")[0]
    with (
        Management(f"http://guest:s3kret@{amqp}", vhost.name, timeout=timedelta(seconds=5)) as management,
        pytest.raises(BrokerUnavailable, match=f"{amqp}.*rabbitmq_management plugin") as caught,
    ):
        apply(SHOP, management)
    assert "s3kret" not in repr(caught.value)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Make a certificate that nobody has signed, with its key, for localhost."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    both = tmp_path / "server.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    key, crt = tmp_path / "key.pem", tmp_path / "crt.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*command, "-keyout", key, "-out", crt], check=True, capture_output=True)
    both.write_text(key.read_text() + crt.read_text())
    return both


class _Overview(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer that nothing is here."""
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def test_a_certificate_that_cannot_be_verified_is_a_tls_error(certificate: Path) -> None:
    """A management API whose certificate is not trusted is refused with the reason; nothing is sent."""
    server = HTTPServer(("127.0.0.1", 0), _Overview)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"https://guest:s3kret@127.0.0.1:{server.server_address[1]}"
    try:
        with (
            Management(url, "/") as management,
            pytest.raises(BrokerUnavailable, match="certificate") as caught,
        ):
            apply(SHOP, management)
        assert "s3kret" not in repr(caught.value)
        trusting = ssl.create_default_context(cafile=str(certificate))
        with (
            Management(url, "/", verify=trusting) as management,
            pytest.raises(BrokerUnavailable, match="does not"),
        ):
            apply(SHOP, management)  # TLS is fine; what is behind it is no RabbitMQ
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
