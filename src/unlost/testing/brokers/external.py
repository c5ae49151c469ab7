"""A broker that somebody else runs, named by ``UNLOST_BROKER_URL``."""

from __future__ import annotations

from collections.abc import Mapping

from unlost.testing.brokers.base import Broker
from unlost.testing.brokers.endpoint import parse_endpoint
from unlost.testing.brokers.probe import Admin, check_amqp

URL = "UNLOST_BROKER_URL"
MANAGEMENT_URL = "UNLOST_MANAGEMENT_URL"


class ExternalBroker(Broker):
    """A broker that tests may use but not kill.

    Args:
        environ: Holds ``UNLOST_BROKER_URL``, and ``UNLOST_MANAGEMENT_URL`` where the management API
            is not on the same host at the usual port with the same credentials.

    Raises:
        ConfigurationError: One of the two is not a URL.
        BrokerUnavailable: It does not answer, within 10 s.
        AccessRefused: It refused the user, the password or the vhost of the URL.
    """

    provider = "external"

    def __init__(self, environ: Mapping[str, str]) -> None:
        amqp = parse_endpoint(environ[URL], URL, ("amqp", "amqps"))
        management = amqp.management()
        if url := environ.get(MANAGEMENT_URL):
            management = parse_endpoint(url, MANAGEMENT_URL, ("http", "https"))
        super().__init__(amqp, management)
        check_amqp(amqp)
        self.version = Admin(
            management,
            hint=f"enable the plugin rabbitmq_management there, or set {MANAGEMENT_URL} to where it listens",
        ).version()

    def close(self) -> None:
        """Do nothing: the broker is not ours to end."""


def unavailable(environ: Mapping[str, str]) -> str | None:
    """Say why no external broker can be used, or ``None`` if one is named."""
    return None if environ.get(URL) else f"{URL} is not set"
